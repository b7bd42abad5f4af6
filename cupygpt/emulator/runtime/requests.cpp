#include "requests.h"

#include "checker.h"
#include "iterations.h"
#include "report.h"

namespace emu {

Request& OpenRequests::find_or_begin(uint64_t key, unsigned lane) {
    const uint32_t bit = 1u << lane;
    // Mostly the lanes do the same one after another, so that the next request is the right one.
    uint32_t& expected = next[lane];
    if (expected < begun.size() && begun[expected] != kClosed) {
        Request& request = pool.requests[begun[expected]];
        if (request.key == key && !(request.mask & bit)) {
            expected++;
            return request;
        }
    }
    while (true) {
        Slot& slot = slot_of(key);
        if (!slot.number) return begin(slot, key, lane);
        const uint32_t index = begun[slot.number - 1];
        if (index != kClosed && !(pool.requests[index].mask & bit)) {
            expected = slot.number;
            return pool.requests[index];
        }
        key = mixed(key, 1);  // the lane comes to the same place once more
    }
}

Request& OpenRequests::begin(Slot& slot, uint64_t key, unsigned lane) {
    const uint32_t index = pool.take();
    pool.numbers[index] = begun.size();
    begun.push_back(index);
    slot = {key, uint32_t(begun.size())};
    used.push_back(&slot - slots.data());
    next[lane] = begun.size();
    Request& request = pool.requests[index];
    request.key = key;
    request.mask = 0;
    return request;
}

uint32_t OpenRequests::Pool::take() {
    if (free.empty()) {
        if (requests.size() == kMostOpenRequests)
            fail("timeout", {nullptr, 0, module_offset(last_access_pc)}, {},
                 "a thread has gone on for %u accesses while the other lanes of its warp wait: an "
                 "endless loop, or a launch too large to be counted",
                 kMostOpenRequests);
        free.push_back(requests.size());
        requests.emplace_back();
        numbers.push_back(0);
    }
    const uint32_t index = free.back();
    free.pop_back();
    return index;
}

void OpenRequests::close(Request& request) {
    const uint32_t index = &request - pool.requests.data();
    begun[pool.numbers[index]] = kClosed;
    pool.free.push_back(index);
}

void OpenRequests::clear() {
    for (uint32_t index : begun)
        if (index != kClosed) pool.free.push_back(index);
    for (uint32_t i : used) slots[i].number = 0;
    used.clear(), begun.clear();
    for (uint32_t& expected : next) expected = 0;
}

OpenRequests::Slot& OpenRequests::slot_of(uint64_t key) {
    if (2 * used.size() >= slots.size()) grow();
    size_t i = key & (slots.size() - 1);
    while (slots[i].number && slots[i].key != key) i = (i + 1) & (slots.size() - 1);
    return slots[i];
}

void OpenRequests::grow() {
    std::vector<Slot> old(slots.empty() ? 64 : 2 * slots.size());
    old.swap(slots);
    used.clear();
    for (const Slot& slot : old) {
        if (!slot.number) continue;
        size_t i = slot.key & (slots.size() - 1);
        while (slots[i].number) i = (i + 1) & (slots.size() - 1);
        slots[i] = slot;
        used.push_back(i);
    }
}

}  // namespace emu
