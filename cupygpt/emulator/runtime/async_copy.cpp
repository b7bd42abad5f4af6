// cp.async: a copy is performed when the kernel waits for it, the latest moment that a GPU may
// choose. A kernel that forgets to wait does not see the data.
#include <cstring>

#include "block.h"
#include "checker.h"

namespace emu {

static void perform(const AsyncCopy& copy) {
    if (checked_memory) end_async_write(copy.pc, copy.shared, copy.bytes);
    memcpy(copy.shared, copy.global, copy.source_bytes);
    memset(copy.shared + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

void check_no_copies_left(Thread& thread) {
    if (checked_memory)
        for (const auto& group : thread.copies)
            if (!group.empty())
                fail("async_copy", {nullptr, 0, module_offset(group[0].pc)}, {},
                     "the thread returned without waiting for this cp.async");
    thread.copies.clear();
}

static std::vector<AsyncCopy>& open_group(Thread& thread) {
    if (thread.copies.empty()) thread.copies.emplace_back();
    return thread.copies.back();
}

}  // namespace emu

using namespace emu;

void emu_async_copy(void* shared, const void* global, size_t bytes, size_t source_bytes) {
    const auto pc = uintptr_t(__builtin_return_address(0));
    if (checked_memory) {
        const Target source = check_access(pc, global, source_bytes, EMU_READ);
        const Target target = begin_async_write(pc, shared, bytes);
        if (counters) {
            count_access(pc, source, bytes, kAsyncCopy);
            count_access(pc, target, bytes, kAsyncCopy);
        }
    }
    open_group(*block.running)
        .push_back({static_cast<char*>(shared), static_cast<const char*>(global), bytes,
                    source_bytes, pc});
}

void emu_async_commit() {
    Thread& self = *block.running;
    open_group(self);
    self.copies.emplace_back();
}

void emu_async_wait(unsigned groups_left) {
    auto& groups = block.running->copies;
    if (groups.size() < groups_left + 2) return;  // the last one is open
    size_t done = groups.size() - 1 - groups_left;
    for (size_t i = 0; i < done; i++)
        for (const AsyncCopy& copy : groups[i]) perform(copy);
    groups.erase(groups.begin(), groups.begin() + done);
}
