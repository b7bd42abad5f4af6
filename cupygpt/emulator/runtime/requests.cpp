#include "requests.h"

#include "iterations.h"

namespace emu {

Request& OpenRequests::find_or_begin(uint64_t key, unsigned lane) {
    const uint32_t bit = 1u << lane;
    // Mostly the lanes do the same one after another, so that the next request is the right one.
    uint32_t& expected = next[lane];
    if (expected < begun.size() && begun[expected] != kClosed) {
        Request& request = pool[begun[expected]];
        if (request.key == key && !(request.mask & bit)) {
            expected++;
            return request;
        }
    }
    while (true) {
        Slot& slot = slot_of(key);
        if (!slot.number) return begin(slot, key, lane);
        const uint32_t index = begun[slot.number - 1];
        if (index != kClosed && !(pool[index].mask & bit)) {
            expected = slot.number;
            return pool[index];
        }
        key = mixed(key, 1);  // the lane comes to the same place once more
    }
}

Request& OpenRequests::begin(Slot& slot, uint64_t key, unsigned lane) {
    if (free.empty()) {
        free.push_back(pool.size());
        pool.emplace_back();
        numbers.push_back(0);
    }
    const uint32_t index = free.back();
    free.pop_back();
    numbers[index] = begun.size();
    begun.push_back(index);
    slot = {key, uint32_t(begun.size())};
    used.push_back(&slot - slots.data());
    next[lane] = begun.size();
    pool[index].key = key;
    pool[index].mask = 0;
    return pool[index];
}

void OpenRequests::close(Request& request) {
    const uint32_t index = &request - pool.data();
    begun[numbers[index]] = kClosed;
    free.push_back(index);
}

void OpenRequests::clear() {
    for (uint32_t i : used) slots[i].number = 0;
    used.clear(), begun.clear(), free.clear();
    for (uint32_t i = pool.size(); i-- > 0;) free.push_back(i);
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
