#include "counters.h"

#include <cstdio>
#include <cstring>
#include <vector>

#include "block.h"
#include "checker.h"
#include "memory_system.h"
#include "requests.h"

namespace emu {

Counters* counters = nullptr;

namespace {

struct WarpCounts {
    OpenRequests open;
    EventList events;  // loads and stores of global memory since the last round ended
    uint64_t rounds[kNumUnderWay] = {};
    std::vector<JoinedReads> joined;  // by place
};

std::vector<WarpCounts> warps;
SectorMap sectors;

// By offset of the code, the first place there, counted from 1; places of one pc form a list.
std::vector<uint32_t> first_place, first_meeting;
uint32_t next_place[kMostPlaces], next_meeting[kMostMeetings];

template <class Entry, class Same>
uint32_t find_or_add(std::vector<uint32_t>& first, uint32_t* next, Entry* entries, uint32_t& count,
                     uint32_t most, uint64_t pc, Same same) {
    if (first.size() <= pc) first.resize(pc + 4096);
    for (uint32_t i = first[pc]; i; i = next[i - 1])
        if (same(entries[i - 1])) return i - 1;
    if (count == most)
        fail("unsupported", {nullptr, 0, pc}, {}, "a kernel with over %u places to count", most);
    next[count] = first[pc];
    first[pc] = count + 1;
    entries[count] = {};
    entries[count].pc = pc;
    return count++;
}

uint32_t place_of(uint64_t pc, const Target& target, size_t bytes, int kind) {
    auto same = [&](const PlaceCounts& p) {
        return p.kind == kind && p.space == target.space && p.bytes == bytes;
    };
    const uint32_t before = counters->num_places;
    const uint32_t i = find_or_add(first_place, next_place, counters->places, counters->num_places,
                                   kMostPlaces, pc, same);
    if (i == before) {
        PlaceCounts& place = counters->places[i];
        place.kind = kind;
        place.space = target.space;
        place.bytes = bytes;
        place.array = target.array;
        place.stride = kNoStride;
    }
    return i;
}

// The bytes from each lane to the next, if they are the same for all lanes that take part.
void note_stride(PlaceCounts& place, const Request& request) {
    int before = -1;
    for (int lane = 0; lane < 32 && place.stride != kMixedStride; lane++) {
        if (!(request.mask >> lane & 1)) continue;
        if (before >= 0) {
            const int64_t apart = request.addresses[lane] - request.addresses[before];
            if (place.stride == kNoStride) place.stride = apart / (lane - before);
            if (place.stride * (lane - before) != apart) place.stride = kMixedStride;
        }
        before = lane;
    }
}

void finish(WarpCounts& warp, const Request& request) {
    PlaceCounts& place = counters->places[request.place];
    place.requests++;
    place.lanes += __builtin_popcount(request.mask);
    note_stride(place, request);
    const Lanes lanes{request.mask, place.bytes, request.addresses};
    if (place.space == Target::global) {
        place.sectors += sectors.touch(lanes, place.kind);
        place.lines += place.kind == kAsyncCopy ? 1 : count_units(lanes, 128);
        return;
    }
    if (place.kind == EMU_ATOMIC) {
        const unsigned turns = atomic_turns(lanes);
        place.turns += turns, place.parts++;
        place.joined_requests++, place.joined_turns += turns;
        return;
    }
    const Turns turns = shared_turns(lanes);
    place.turns += turns.turns, place.parts += turns.parts;
    if (place.kind != EMU_READ || place.bytes != 4) {
        place.joined_requests++, place.joined_turns += turns.turns;
        return;
    }
    if (warp.joined.size() <= request.place) warp.joined.resize(request.place + 16);
    warp.joined[request.place].add(lanes, place);
}

void count_rounds(WarpCounts& warp) {
    struct Seen {
        uint64_t round = 0;
        unsigned count = 0;
    };
    static std::vector<Seen> seen[kNumUnderWay];
    static uint64_t number = 0;
    for (unsigned u = 0; u < kNumUnderWay; u++) {
        if (seen[u].size() < counters->num_places) seen[u].resize(kMostPlaces);
        bool open = false;
        for (uint32_t i = warp.events.first(); i; i = warp.events.after(i)) {
            const EventList::Event& event = warp.events[i];
            if (!event.is_load) {
                open = false;
                continue;
            }
            if (!open) number++, warp.rounds[u]++, open = true;
            Seen& loads = seen[u][event.place];
            if (loads.round != number) loads = {number, 0};
            if (++loads.count == kUnderWay[u]) open = false;
        }
    }
    warp.events.clear();
}

// Finishes what is half collected; from here on the lanes of the warp are together.
void finish_all(unsigned number) {
    WarpCounts& warp = warps[number];
    warp.open.for_each_open([&](const Request& request) { finish(warp, request); });
    warp.open.clear();
    for (uint32_t i = 0; i < warp.joined.size(); i++)
        warp.joined[i].end(counters->places[i]);
    forget_iterations(number);
}

bool ends_round(const char* operation) {
    return !strncmp(operation, "__", 2);  // shuffles, votes and __syncwarp; not mma and ldmatrix
}

void count_meeting(const char* operation, uint64_t pc) {
    auto same = [&](const MeetingCounts& m) { return !strcmp(m.operation, operation); };
    const uint32_t i = find_or_add(first_meeting, next_meeting, counters->meetings,
                                   counters->num_meetings, kMostMeetings, pc, same);
    MeetingCounts& meeting = counters->meetings[i];
    if (!meeting.count) snprintf(meeting.operation, sizeof meeting.operation, "%s", operation);
    meeting.count++;
}

void add(WarpCounts& warp, uint32_t place, uint64_t address) {
    const Thread& self = *block.running;
    Request& request = warp.open.find_or_begin(mixed(iteration_key(self), place), self.lane);
    if (!request.mask) {
        const PlaceCounts& p = counters->places[place];
        const bool is_load = p.kind == EMU_READ || p.kind == kAsyncCopy;
        const bool is_event = p.space == Target::global;
        request.event = is_event ? warp.events.add(place, is_load, self.lane) : 0;
        request.place = place;
    }
    if (request.event) warp.events.go_to(request.event, self.lane);
    request.addresses[self.lane] = address;
    request.mask |= 1u << self.lane;
    if (request.mask != block.warps[self.warp].present) return;
    finish(warp, request);
    warp.open.close(request);
}

}  // namespace

void start_counting(const CountingRequest& request, size_t warps_of_block) {
    counters = request.result;
    warps.resize(warps_of_block);
    start_iterations(request.blocks, request.num_blocks, request.loops, warps_of_block);
}

void count_access(uintptr_t pc, const Target& target, size_t bytes, int kind) {
    if (target.space == Target::nowhere || !bytes) return;
    if (target.space == Target::shared) {
        if (target.array >= kMostShared)
            fail("unsupported", {nullptr, 0, module_offset(pc)}, {},
                 "a file with over %u shared arrays to count", kMostShared);
        counters->shared_used[target.array] = 1;
    }
    WarpCounts& warp = warps[block.running->warp];
    const uint64_t offset = module_offset(pc);
    // A copy of many bytes is a row of accesses of at most 128 bits.
    for (size_t at = 0; at < bytes; at += 16) {
        const size_t piece = bytes - at < 16 ? bytes - at : 16;
        const uint32_t place = place_of(offset, target, piece, kind);
        const uint64_t base = target.space == Target::global ? uint64_t(target.allocation) << 40
                                                             : uint64_t(target.array) << 20;
        add(warp, place, base + target.offset + at);
    }
}

void count_warp_meeting(unsigned number, const char* operation, uint64_t pc) {
    count_meeting(operation, pc);
    finish_all(number);
    if (ends_round(operation)) count_rounds(warps[number]);
}

void count_barrier(uint64_t pc) {
    count_meeting("__syncthreads", pc);
    for (unsigned i = 0; i < warps.size(); i++) finish_all(i), count_rounds(warps[i]);
}

void count_end_of_block() {
    for (unsigned i = 0; i < warps.size(); i++) {
        finish_all(i), count_rounds(warps[i]);
        for (unsigned u = 0; u < kNumUnderWay; u++) {
            if (warps[i].rounds[u] > counters->rounds[u]) counters->rounds[u] = warps[i].rounds[u];
            warps[i].rounds[u] = 0;
        }
    }
    counters->num_warps += warps.size();
    sectors.sum(*counters);
}

}  // namespace emu
