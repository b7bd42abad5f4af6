// The requests of a warp that are half collected. Between two meetings the lanes run one after
// another, so a lane finds here the requests that the lanes before it have begun.
#pragma once
#include <cstdint>
#include <vector>

namespace emu {

// One access of several lanes of a warp, as far as they have come.
struct Request {
    uint64_t key;
    uint32_t mask, place;
    uint32_t event;  // in the EventList; 0: none
    uint64_t addresses[32];
};

// Requests of all warps of a block that are open at a time: 145 MB.
constexpr uint32_t kMostOpenRequests = 1u << 19;

class OpenRequests {
public:
    // The request of this key that the lane has not joined yet; a new one has an empty mask.
    Request& find_or_begin(uint64_t key, unsigned lane);

    // All lanes have joined: its memory is used again.
    void close(Request& request);

    // Those that are left, in the order in which they were begun.
    template <class Function>
    void for_each_open(Function function) {
        for (uint32_t index : begun)
            if (index != kClosed) function(pool.requests[index]);
    }
    void clear();

private:
    static constexpr uint32_t kClosed = ~0u;
    struct Slot {
        uint64_t key;
        uint32_t number;  // in `begun`, counted from 1; 0: the slot is free
    };
    Slot& slot_of(uint64_t key);
    void grow();
    Request& begin(Slot& slot, uint64_t key, unsigned lane);

    // Of all warps: they run one after another, so mostly one of them has open requests.
    struct Pool {
        std::vector<Request> requests;
        std::vector<uint32_t> numbers;  // by index
        std::vector<uint32_t> free;
        uint32_t take();
    };
    static inline Pool pool;

    std::vector<uint32_t> begun;  // by number: index in the pool, or kClosed
    std::vector<Slot> slots;      // a hash table with a power of two of slots
    std::vector<uint32_t> used;   // slots that are not free
    uint32_t next[32] = {};       // by lane: the request that it is likely to join next
};

// The accesses of a warp to global memory, in the order of the program: what one lane does alone
// stands between the accesses that it does with others.
class EventList {
public:
    struct Event {
        uint32_t place, next;
        bool is_load;
    };
    // Adds an event after the last one of the lane.
    uint32_t add(uint32_t place, bool is_load, unsigned lane) {
        const uint32_t number = events.size();
        events.push_back({place, events[last_of[lane]].next, is_load});
        events[last_of[lane]].next = number;
        return number;
    }
    void go_to(uint32_t event, unsigned lane) { last_of[lane] = event; }
    uint32_t first() const { return events[0].next; }
    uint32_t after(uint32_t event) const { return events[event].next; }
    const Event& operator[](uint32_t event) const { return events[event]; }
    void clear() {
        events.resize(1);
        events[0].next = 0;
        for (uint32_t& last : last_of) last = 0;
    }

private:
    std::vector<Event> events{{}};  // the first stands for the beginning
    uint32_t last_of[32] = {};
};

}  // namespace emu
