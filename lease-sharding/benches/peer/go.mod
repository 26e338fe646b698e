module lease-sharding/benches/peer

go 1.26.0

require (
	github.com/buraksezer/consistent v1.0.0
	github.com/cespare/xxhash/v2 v2.3.0
	lease-sharding/consistent-v0.10 v0.10.0
)

// The older version under another name, so that one program has both.
replace lease-sharding/consistent-v0.10 => github.com/buraksezer/consistent v0.10.0
