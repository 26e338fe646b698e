# One static binary in an empty image. Nothing else is needed: no shell, no CA certificates (those of the
# cluster come with the ServiceAccount), no time zones.
#
#   docker build --tag registry.example.com/ksm-scale-operator:0.1.0 .
#
# The same commit gives the same binary: the compiler and every crate are pinned, paths are the
# container's, and no time goes in.
FROM docker.io/library/rust:1.95.0-alpine AS build
RUN apk add --no-cache make musl-dev
# Writes the SBOM.
RUN cargo install --locked cargo-cyclonedx@0.5.9
WORKDIR /src
COPY . .
# The image's own toolchain, which is that of rust-toolchain.toml.
ENV RUSTUP_TOOLCHAIN=1.95.0 \
    CARGO_INCREMENTAL=0 \
    RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,--build-id=none --remap-path-prefix=/src=/ksm-scale-operator --remap-path-prefix=/usr/local/cargo=/cargo"
RUN cargo build --release --locked --bin ksm-scale-operator && make licenses sbom

FROM scratch
LABEL org.opencontainers.image.title="ksm-scale-operator" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/target/release/ksm-scale-operator /ksm-scale-operator
COPY --from=build /src/LICENSE /src/target/licenses.txt /src/target/sbom.cdx.json /licenses/
# As the Deployment says: runAsNonRoot needs a number.
USER 65532:65532
ENTRYPOINT ["/ksm-scale-operator"]
CMD ["run"]
