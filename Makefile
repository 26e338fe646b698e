# Every target is a few lines that call cargo; nothing is decided here.
# Tests in tests/*.rs need no cluster; those in tests/*/main.rs and devcluster/tests do.

UNIT    := $(patsubst tests/%.rs,--test %,$(wildcard tests/*.rs))
CLUSTER := $(patsubst tests/%/main.rs,--test %,$(wildcard tests/*/main.rs))
SHARING := $(patsubst lease-sharding/tests/%.rs,--test %,$(wildcard lease-sharding/tests/*.rs))
FUZZ    := $(patsubst fuzz/fuzz_targets/%.rs,%,$(wildcard fuzz/fuzz_targets/*.rs))
SECONDS := 60
STATIC  := x86_64-unknown-linux-musl
CRATES  := $(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src
# Properties are tried with the same cases in every run, so that what fails fails again. Others are looked
# at with `make unit PROPTEST_RNG_SEED=$RANDOM`.
export PROPTEST_RNG_SEED ?= 1
say      = @echo; echo "==> $(1)"

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint unit doctest cluster-test soak tools update exposure pictures prometheus image-root licenses sbom bench fuzz publish-check versions deny clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: tools ## Show the operator on a real control plane, step by step
	$(call say,demo: building the operator)
	cargo build
	cargo run --quiet --example demo

test: lint unit doctest tools cluster-test ## All checks and tests, in the order of CI; CI runs this
	$(call say,all checks and tests passed)

lint: ## Formatting, clippy and documentation, without warnings
	$(call say,lint: formatting)
	cargo fmt --all --check
	$(call say,lint: clippy)
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(call say,lint: documentation)
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

unit: ## Tests that need no cluster (under three minutes)
	$(call say,tests without a cluster)
	cargo test --workspace --exclude lease-sharding --lib --bins --locked
	cargo test --locked -p lease-sharding --lib $(SHARING)
	cargo test --locked $(UNIT)

doctest: ## Examples in the documentation
	$(call say,documentation tests)
	cargo test --workspace --doc --locked --quiet

cluster-test: tools ## Tests on a real control plane
	$(call say,tests on a real control plane)
	cargo test --locked $(CLUSTER)
	cargo test --locked -p lease-sharding --test apiserver -- --test-threads=2
	cargo test --locked -p devcluster --tests
	cargo test --locked --test prometheus --test chart -- --ignored

soak: tools ## The long runs: 50,000 calls in rollouts and rotations, all 90 changes, an hour of churn (about four hours)
	$(call say,soak: rollouts and rotations under load; random changes)
	cargo test --locked --test apiserver -- --ignored --nocapture --test-threads=1 soak_

tools: ## Build the control plane's programs, once (about 13 minutes; needs Go)
	$(call say,control plane: its programs are built the first time (about 13 minutes))
	cargo run --quiet --locked -p devcluster -- build

update: tools ## Write the generated files anew: crds/, deploy/, tests/golden/ and others
	UPDATE=1 cargo test --locked $(UNIT)
	UPDATE=1 cargo test --locked --test apiserver -- kubectl:: served::

exposure: tools ## Measure what stays exposed while shards change, three ways (about 7 minutes)
	cargo build --locked
	cargo run --quiet --locked --example exposure
	cargo run --quiet --locked --example exposure -- --takeover
	$(MAKE) pictures

pictures: ## Draw docs/pictures anew, from the data there
	UPDATE=1 cargo test --locked --test pictures

prometheus: ## Prometheus's own check and tests of rules and alerts
	cargo test --locked --test prometheus -- --include-ignored

# Once: rustup target add x86_64-unknown-linux-musl; Debian: apt-get install musl-tools
image-root: ## Run the static binary as the image has it: alone in an empty root (needs root)
	cargo build --release --locked --target $(STATIC) --bin ksm-scale-operator
	rm -rf target/image-root && mkdir -p target/image-root
	cp target/$(STATIC)/release/ksm-scale-operator target/image-root/
	chroot --userspec=65532:65532 target/image-root /ksm-scale-operator --version
	chroot --userspec=65532:65532 target/image-root /ksm-scale-operator crd | cmp - crds/ksmscales.monitor.example.com.yaml
	chroot --userspec=65532:65532 target/image-root /ksm-scale-operator validate -f - < deploy/samples/production.yaml

# Many crates leave out the text of Apache-2.0, which the image has anyway; no other text may be missing.
licenses: ## The crates in the binary, their licences and the texts of these, in target/licenses.txt
	mkdir -p target
	cargo tree --locked --package ksm-scale-operator --edges normal --prefix none --format '{p} | {l}' \
	    | sed 's/ (proc-macro)//; s/ (\*)//; s/ (\/[^)]*)//' | sort -u > target/crates.txt
	missing=0; while read -r name version _ license; do \
	    printf '%s %s: %s\n\n' "$$name" "$$version" "$$license"; \
	    texts=$$(find $(CRATES)/*/"$$name-$${version#v}" -maxdepth 1 -type f 2>/dev/null \
	        | grep -iE '/[^/]*(licen[cs]e|copying|copyright|notice)[^/]*$$' | sort); \
	    [ "$$texts" ] || echo "no text of a licence in $$name $$version ($$license)" >&2; \
	    case "$$texts:$$license" in \
	        ?*:*) cat $$texts;; \
	        *AND*) missing=1;; \
	        *Apache-2.0*) echo "The crate holds no text. That of Apache-2.0 is the file LICENSE of ksm-scale-operator.";; \
	        *) missing=1;; \
	    esac; \
	    printf '\n'; \
	done < target/crates.txt > target/licenses.txt; \
	[ $$missing = 0 ] || { echo "of these, one without Apache-2.0: its text has to come from elsewhere" >&2; exit 1; }

# Once: cargo install --locked cargo-cyclonedx. It writes a file beside each Cargo.toml of the workspace.
sbom: ## What the binary is made of, as CycloneDX, in target/sbom.cdx.json (needs cargo-cyclonedx)
	mkdir -p target
	SOURCE_DATE_EPOCH=0 cargo cyclonedx --format json --spec-version 1.5 --no-build-deps --override-filename sbom.cdx
	mv sbom.cdx.json target/
	rm -f devcluster/sbom.cdx.json lease-sharding/sbom.cdx.json

bench: tools ## Measure speed and size (about 20 minutes; see docs/benchmarks.md)
	cargo bench --locked --bench plan
	cargo bench --locked --bench admission
	cargo bench --locked --bench webhook
	cargo bench --locked --bench cluster
	cargo bench --locked --bench coverage
	$(MAKE) -C lease-sharding bench

# Once: cargo install --locked cargo-fuzz. No sanitizer: there is no unsafe code for it to watch, and
# it needs a nightly compiler.
fuzz: ## Look for inputs that break a promise (SECONDS=60 for each target; needs cargo-fuzz)
	cd fuzz && for target in $(FUZZ); do \
	    mkdir -p target/found/$$target && \
	    cargo fuzz run --sanitizer none $$target target/found/$$target corpus/$$target -- -max_total_time=$(SECONDS) -max_len=4096 -timeout=30 || exit 1; \
	done
	$(MAKE) -C lease-sharding fuzz SECONDS=$(SECONDS)

publish-check: ## lease-sharding as it would be published
	K8S_OPENAPI_ENABLED_VERSION=1.33 cargo publish --locked --dry-run -p lease-sharding

versions: ## Compile with the types of the oldest and the newest Kubernetes that k8s-openapi has
	for version in 1.33 1.37; do \
	    K8S_OPENAPI_ENABLED_VERSION=$$version cargo check --locked --no-default-features --lib --bins || exit 1; \
	    K8S_OPENAPI_ENABLED_VERSION=$$version cargo check --locked --lib -p lease-sharding || exit 1; \
	done

deny: ## Licences, bans, sources, advisories (needs: cargo install --locked cargo-deny)
	cargo deny check

clean: ## Remove what was built here; the control plane's programs stay in ~/.cache
	cargo clean
