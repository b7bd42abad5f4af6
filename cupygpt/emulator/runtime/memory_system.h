// How a GPU serves one request of a warp: sectors and lines of global memory, turns of shared
// memory. Each rule here was compared with what an H100 counts.
#pragma once
#include <cstdint>
#include <vector>

namespace emu {

struct Counters;
struct PlaceCounts;

// The lanes of a warp that make a request.
struct Lanes {
    uint32_t mask;
    uint32_t bytes;  // of each lane
    const uint64_t* addresses;

    bool has(unsigned lane) const { return mask >> lane & 1; }
};

// How many units of a power of two bytes the lanes touch.
unsigned count_units(const Lanes& lanes, unsigned unit);

// Shared memory has 32 banks of 4 bytes. A part of a request takes as many turns as its fullest
// bank holds different words. `parts` is what the request would take without bank conflicts.
struct Turns {
    unsigned turns, parts;
};
Turns shared_turns(const Lanes& lanes);

// Atomic operations of one bank go one after another, also those at one address.
unsigned atomic_turns(const Lanes& lanes);

// Neighbouring words that a thread reads one after another become one wide read where nvcc sees
// that they are aligned: four words that begin at a multiple of 16 bytes, else two at one of 8.
class JoinedReads {
public:
    void add(const Lanes& lanes, PlaceCounts& place);
    void end(PlaceCounts& place);  // nothing is joined across a meeting

private:
    bool continues(const Lanes& lanes) const;
    void flush(PlaceCounts& place, unsigned words);

    uint32_t mask = 0;
    unsigned count = 0, most = 0;  // words until now, and at most
    uint64_t addresses[32];        // of the first word
};

// Which sectors of global memory have been read or written, by the launch and by this block.
class SectorMap {
public:
    // Returns the number of different sectors of the request.
    unsigned touch(const Lanes& lanes, int kind);
    void sum(Counters& counters) const;

private:
    struct Allocation {
        std::vector<uint8_t> used;
        std::vector<uint32_t> block;  // the last that read the sector, counted from 1
    };
    std::vector<Allocation> allocations;
    uint64_t read = 0, written = 0, fetched = 0;
};

}  // namespace emu
