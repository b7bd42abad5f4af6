#include "memory_system.h"

#include "block.h"
#include "counters.h"
#include "emulator_abi.h"

namespace emu {

constexpr unsigned kSectorBytes = 32, kBanks = 32;

namespace {

// The units that the lanes touch, in order and each once.
unsigned list_units(const Lanes& lanes, unsigned unit, uint64_t* units) {
    unsigned count = 0;
    auto insert = [&](uint64_t next) {
        unsigned at = count;  // mostly the last place: the addresses rise from lane to lane
        while (at && units[at - 1] > next) at--;
        if (at && units[at - 1] == next) return;
        for (unsigned i = count++; i > at; i--) units[i] = units[i - 1];
        units[at] = next;
    };
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!lanes.has(lane)) continue;
        const uint64_t first = lanes.addresses[lane] / unit;
        const uint64_t last = (lanes.addresses[lane] + lanes.bytes - 1) / unit;
        insert(first);
        if (last != first) insert(last);  // of an access that is not aligned
    }
    return count;
}

void raise(unsigned& most, unsigned value) {
    if (value > most) most = value;
}

// Whether lanes that differ in this bit of their number all ask for the same address.
bool alike(const Lanes& lanes, unsigned bit) {
    for (unsigned lane = 0; lane < 32; lane++)
        if (!(lane & bit) && lanes.has(lane) && lanes.has(lane ^ bit) &&
            lanes.addresses[lane] != lanes.addresses[lane ^ bit])
            return false;
    return true;
}

// Turns of one part: the most different words in a bank.
unsigned turns_of_part(const Lanes& lanes) {
    uint64_t words[32 * 4];
    const unsigned count = list_units(lanes, 4, words);
    unsigned in_bank[kBanks] = {}, most = 0;
    for (unsigned i = 0; i < count; i++) raise(most, ++in_bank[words[i] % kBanks]);
    return most;
}

Lanes among(const Lanes& lanes, uint32_t chosen) {
    return {lanes.mask & chosen, lanes.bytes, lanes.addresses};
}

void add_part(Turns& sum, const Lanes& part) {
    if (!part.mask) return;
    sum.turns += turns_of_part(part);
    sum.parts++;
}

}  // namespace

unsigned count_units(const Lanes& lanes, unsigned unit) {
    uint64_t units[2 * 32];
    return list_units(lanes, unit, units);
}

Turns shared_turns(const Lanes& lanes) {
    Turns sum{0, 0};
    if (lanes.bytes <= 4) {
        add_part(sum, lanes);
        return sum;
    }
    // 8 bytes: the two halves of the warp; 16 bytes: the two quarters of each half.
    const unsigned groups = lanes.bytes <= 8 ? 1 : 2, width = 32 / groups;
    for (unsigned g = 0; g < groups; g++) {
        const uint32_t low = (1u << width / 2) - 1;
        const uint32_t first = low << g * width, second = first << width / 2;
        const Lanes whole = among(lanes, first | second);
        if (alike(whole, 1) || alike(whole, 2)) {
            add_part(sum, whole);
        } else {
            add_part(sum, among(lanes, first));
            add_part(sum, among(lanes, second));
        }
    }
    return sum;
}

unsigned atomic_turns(const Lanes& lanes) {
    unsigned in_bank[kBanks] = {}, most = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        if (lanes.has(lane)) raise(most, ++in_bank[lanes.addresses[lane] / 4 % kBanks]);
    return most;
}

bool JoinedReads::continues(const Lanes& lanes) const {
    if (!count || count == most || lanes.mask != mask) return false;
    for (unsigned lane = 0; lane < 32; lane++)
        if (lanes.has(lane) && lanes.addresses[lane] != addresses[lane] + 4 * count) return false;
    return true;
}

void JoinedReads::add(const Lanes& lanes, PlaceCounts& place) {
    if (continues(lanes)) {
        count++;
        return;
    }
    end(place);
    uint64_t bits = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!lanes.has(lane)) continue;
        addresses[lane] = lanes.addresses[lane];
        bits |= lanes.addresses[lane];
    }
    mask = lanes.mask;
    count = 1;
    most = bits % 16 == 0 ? 4 : bits % 8 == 0 ? 2 : 1;
}

void JoinedReads::flush(PlaceCounts& place, unsigned words) {
    place.joined_requests++;
    place.joined_turns += shared_turns({mask, 4 * words, addresses}).turns;
    for (uint64_t& address : addresses) address += 4 * words;
    count -= words;
}

void JoinedReads::end(PlaceCounts& place) {
    if (count == 4) flush(place, 4);
    if (count >= 2) flush(place, 2);
    if (count) flush(place, 1);
}

unsigned SectorMap::touch(const Lanes& lanes, int kind) {
    uint64_t units[2 * 32];
    const unsigned count = list_units(lanes, kSectorBytes, units);
    const uint8_t use = kind == EMU_WRITE ? 2 : kind == EMU_ATOMIC ? 3 : 1;
    const bool fetches = kind != EMU_WRITE && kind != EMU_ATOMIC;
    for (unsigned i = 0; i < count; i++) {
        const uint64_t number = units[i] * kSectorBytes >> 40;
        const uint64_t sector = units[i] & ((uint64_t(1) << 40) / kSectorBytes - 1);
        if (allocations.size() <= number) allocations.resize(number + 1);
        Allocation& in = allocations[number];
        if (in.used.size() <= sector) {
            in.used.resize(2 * sector + 1024);
            in.block.resize(in.used.size());
        }
        const uint8_t fresh = use & ~in.used[sector];
        in.used[sector] |= use;
        read += fresh & 1, written += fresh >> 1;
        if (fetches && in.block[sector] != block.number + 1) {
            in.block[sector] = block.number + 1;
            fetched++;
        }
    }
    return count;
}

void SectorMap::sum(Counters& counters) const {
    counters.read_sectors = read;
    counters.written_sectors = written;
    counters.fetched_sectors = fetched;
}

}  // namespace emu
