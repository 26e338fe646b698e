// Both versions of the library that lease-sharding is compared with: what they answer, and how long
// they take. ../placement asks the same of lease-sharding and checks each answer.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	v0 "lease-sharding/consistent-v0.10"

	v1 "github.com/buraksezer/consistent"
	"github.com/cespare/xxhash/v2"
)

const (
	partitions = 509
	keys       = 1024
	lookups    = 100_000
	samples    = 50
	rebuilds   = 30
	trials     = 200
)

type name string

func (n name) String() string { return string(n) }

type hasher struct{}

func (hasher) Sum64(data []byte) uint64 { return xxhash.Sum64(data) }

// A ring of either version: they differ in the type of members.
type ring[M any] interface {
	LocateKey(key []byte) M
	GetPartitionOwner(partition int) M
	LoadDistribution() map[string]float64
	Add(member M)
	Remove(name string)
}

// What is printed, for one version.
type report struct {
	Version      string
	LookupNs     float64  // one thread; here and below, the fastest sample
	LookupPairNs float64  // the same on each of two threads
	RebuildUs    float64  // 50 members
	LeastMostNs  float64  // finding the least and the most loaded of 10 members
	Owners       []string // of each key, with 10 members
	Loads        []int    // least and most of 10
	AddMoves     []int    // from 3, 10 and 50 members to one more, all trials together
	RollMoves    []int    // replacing 3 and 10 members one by one, all trials together
}

func member(number int) name { return name(fmt.Sprintf("operator-%08x", uint32(number)*0x9e3779b9)) }

func members[M any](first, count int, as func(name) M) []M {
	var all []M
	for number := first; number < first+count; number++ {
		all = append(all, as(member(number)))
	}
	return all
}

// Nanoseconds for each of the lookups that every thread makes.
func lookup[M any, R ring[M]](r R, all [][]byte, threads int) float64 {
	var found []float64
	for range samples {
		var done sync.WaitGroup
		begun := time.Now()
		for range threads {
			done.Go(func() {
				for i := range lookups {
					_ = r.LocateKey(all[i%keys])
				}
			})
		}
		done.Wait()
		found = append(found, float64(time.Since(begun).Nanoseconds())/lookups)
	}
	return slices.Min(found)
}

func owners[M fmt.Stringer, R ring[M]](r R) []string {
	var all []string
	for partition := range partitions {
		all = append(all, r.GetPartitionOwner(partition).String())
	}
	return all
}

func moved(before, after []string) (count int) {
	for at := range before {
		if before[at] != after[at] {
			count++
		}
	}
	return count
}

func leastAndMost[M any, R ring[M]](r R) (least, most float64) {
	least = partitions
	for _, load := range r.LoadDistribution() {
		least, most = min(least, load), max(most, load)
	}
	return least, most
}

func measure[M fmt.Stringer, R ring[M]](version string, as func(name) M, build func([]M) R) report {
	result := report{Version: version}
	var all [][]byte
	for number := range keys {
		all = append(all, fmt.Appendf(nil, "apps/Deployment/namespace-%d/name-%d", number%7, number))
	}
	ten := build(members(0, 10, as))
	for _, key := range all {
		result.Owners = append(result.Owners, ten.LocateKey(key).String())
	}
	result.LookupNs = lookup(ten, all, 1)
	result.LookupPairNs = lookup(ten, all, 2)
	var times []float64
	for range rebuilds {
		fifty := members(0, 50, as)
		begun := time.Now()
		build(fifty)
		times = append(times, float64(time.Since(begun).Nanoseconds())/1_000)
	}
	result.RebuildUs = slices.Min(times)
	least, most := leastAndMost(ten)
	result.Loads = []int{int(least), int(most)}
	times = nil
	for range samples {
		begun := time.Now()
		leastAndMost(ten)
		times = append(times, float64(time.Since(begun).Nanoseconds()))
	}
	result.LeastMostNs = slices.Min(times)
	for _, count := range []int{3, 10, 50} {
		total := 0
		for trial := range trials {
			r := build(members(1000*trial, count, as))
			before := owners(r)
			r.Add(as(member(1000*trial + count)))
			total += moved(before, owners(r))
		}
		result.AddMoves = append(result.AddMoves, total)
	}
	for _, count := range []int{3, 10} {
		total := 0
		for trial := range trials {
			r := build(members(1000*trial, count, as))
			before := owners(r)
			for number := 1000 * trial; number < 1000*trial+count; number++ {
				r.Add(as(member(number + count)))
				joined := owners(r)
				r.Remove(member(number).String())
				left := owners(r)
				total += moved(before, joined) + moved(joined, left)
				before = left
			}
		}
		result.RollMoves = append(result.RollMoves, total)
	}
	return result
}

func main() {
	old := v0.Config{Hasher: hasher{}, PartitionCount: partitions, ReplicationFactor: 20, Load: 1.25}
	now := v1.Config{Hasher: hasher{}, PartitionCount: partitions, ReplicationFactor: 20, Load: 1.25}
	reports := []report{
		measure("v0.10.0", func(n name) v0.Member { return n },
			func(all []v0.Member) *v0.Consistent { return v0.New(all, old) }),
		measure("v1.0.0", func(n name) v1.Member { return n },
			func(all []v1.Member) *v1.Consistent { return v1.New(all, now) }),
	}
	if err := json.NewEncoder(os.Stdout).Encode(reports); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
