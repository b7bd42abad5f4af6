// Which thread runs next; barriers; operations that all lanes of a warp do together.
#include <cstring>

#include "block.h"
#include "checker.h"

namespace emu {

Block block;

static void make_ready(Thread& thread) {
    thread.state = State::ready;
    block.ready.push_back(thread.linear);
}

static void resume(Context& from, Thread* next) {
    block.running = next;
    switch_context(from, next ? next->context : block.launcher);
}

// Switches to the next ready thread, or to the launcher if there is none.
static void run_another(Thread& self) {
    if (block.ready.empty()) return resume(self.context, nullptr);
    Thread& next = block.threads[block.ready.front()];
    block.ready.pop_front();
    if (&next == &self) {
        block.running = &self;
        return;
    }
    resume(self.context, &next);
}

// "lane 0", "lanes 0, 3, 16 to 31"
struct Lanes {
    char text[128];
    explicit Lanes(uint32_t mask) {
        int n = snprintf(text, sizeof text, mask & (mask - 1) ? "lanes" : "lane");
        for (unsigned first = 0, last; first < 32; first = last + 1) {
            last = first;
            if (!(mask >> first & 1)) continue;
            while (last < 31 && mask >> (last + 1) & 1) last++;
            const char* comma = n > 5 ? "," : "";
            if (last - first > 1)
                n += snprintf(text + n, sizeof text - n, "%s %u to %u", comma, first, last);
            else
                last = first, n += snprintf(text + n, sizeof text - n, "%s %u", comma, first);
        }
    }
};

static void finish(Thread& self) {
    check_no_copies_left(self);
    self.state = State::finished;
    block.finished++;
    Warp& warp = block.warps[self.warp];
    warp.exited |= 1u << self.lane;
    if (block.at_barrier) {
        fail("early_exit", block.first_at_barrier->place, {},
             "the thread returned while %u thread(s) of its block wait at this __syncthreads()",
             block.at_barrier);
    }
    if (warp.arrived) {
        Thread* waiting = &block.threads[self.warp * 32 + __builtin_ctz(warp.arrived)];
        fail("early_exit", waiting->place, {},
             "the thread returned while %s of its warp wait%s at this %s", Lanes(warp.arrived).text,
             warp.arrived & (warp.arrived - 1) ? "" : "s", waiting->operation);
    }
}

static void thread_main() {
    block.body(block.arguments);
    Thread& self = *block.running;
    finish(self);
    run_another(self);
    __builtin_unreachable();
}

// No thread is ready, and not all have finished.
[[noreturn]] static void report_deadlock() {
    Thread* barrier = block.at_barrier ? block.first_at_barrier : nullptr;
    Thread* warp = nullptr;
    unsigned at_warp = 0;
    for (Thread& thread : block.threads) {
        if (thread.state != State::at_warp) continue;
        at_warp++;
        if (!warp) warp = &thread;
    }
    Thread* first = warp ? warp : barrier;
    block.running = first;
    fail("deadlock", first->place, barrier && warp ? barrier->place : Place{},
         "no thread can continue: %u at __syncthreads(), %u at a warp operation%s%s, %u returned",
         block.at_barrier, at_warp, warp ? ", the first at " : "", warp ? warp->operation : "",
         block.finished);
}

void run_block(uint3 index, uint32_t number) {
    block.index = index;
    block.number = number;
    block.at_barrier = block.finished = 0;
    block.barrier_epoch = 0;
    block.ready.clear();
    const unsigned count = block.threads.size();
    for (unsigned w = 0; w < block.warps.size(); w++) {
        unsigned lanes = count - w * 32 < 32 ? count - w * 32 : 32;
        block.warps[w] = {lanes == 32 ? ~0u : (1u << lanes) - 1, 0, 0, 0};
    }
    for (unsigned i = 0; i < count; i++) {
        Thread& thread = block.threads[i];
        thread.index = unravel(i, block.size);
        thread.linear = i;
        thread.lane = i % 32;
        thread.warp = i / 32;
        char* low = block.stacks + i * (kStackBytes + kGuardBytes) + kGuardBytes;
        // With equal offsets the tops of the stacks would share few cache sets.
        prepare(thread.context, low, kStackBytes - i % 16 * 256, thread_main);
        make_ready(thread);
    }
    block.ready.pop_front();
    resume(block.launcher, &block.threads[0]);
    if (block.finished != count) report_deadlock();
    if (counters) count_end_of_block();
}

}  // namespace emu

using namespace emu;

// Where a thread waits: the line of the barrier, and the call of the runtime, from which the lines
// of the functions around it follow.
#define EMU_WAITING_PLACE {file, line, module_offset(uintptr_t(__builtin_return_address(0)))}

static bool same_line(const Place& place, const char* file, int line) {
    return place.line == line && (place.file == file || !strcmp(place.file, file));
}

void emu_barrier(const char* file, int line) {
    Thread& self = *block.running;
    self.place = EMU_WAITING_PLACE;
    if (block.finished)
        fail("early_exit", self.place, {},
             "%u thread(s) of the block returned before this __syncthreads()", block.finished);
    if (block.at_barrier) {
        Thread* other = block.first_at_barrier;
        if (!same_line(other->place, file, line))
            fail("divergent_barrier", self.place, other->place,
                 "threads of one block wait at different __syncthreads(): this one and thread "
                 "(%u, %u, %u)",
                 other->index.x, other->index.y, other->index.z);
    } else {
        block.first_at_barrier = &self;
    }
    self.state = State::at_barrier;
    if (++block.at_barrier == block.threads.size()) {
        block.at_barrier = 0;
        block.barrier_epoch++;
        if (counters) count_barrier(self.place.pc);
        for (Thread& thread : block.threads) make_ready(thread);
    }
    run_another(self);
}

void emu_warp(const char* operation, unsigned mask, void* data, emu_combine combine,
              int orders_memory, const char* file, int line) {
    Thread& self = *block.running;
    Warp& warp = block.warps[self.warp];
    self.place = EMU_WAITING_PLACE;
    self.operation = operation;
    self.warp_data = data;
    if (mask != ~0u)
        fail("unsupported", self.place, {}, "%s with mask %08x: only the full warp is emulated",
             operation, mask);
    if (warp.exited)
        fail("early_exit", self.place, {}, "%s of the warp returned before this %s",
             Lanes(warp.exited).text, operation);
    if (warp.arrived) {
        Thread& other = block.threads[self.warp * 32 + __builtin_ctz(warp.arrived)];
        const bool same = other.operation == operation || !strcmp(other.operation, operation);
        if (!same || !same_line(other.place, file, line))
            fail("divergent_warp", self.place, other.place,
                 "lanes of one warp are at different operations: this %s and lane %u's %s",
                 operation, other.lane, other.operation);
    }
    self.state = State::at_warp;
    warp.arrived |= 1u << self.lane;
    if (warp.arrived == warp.present) {
        warp.arrived = 0;
        void* lanes[32] = {};
        for (unsigned lane = 0; lane < 32; lane++)
            if (warp.present >> lane & 1)
                lanes[lane] = block.threads[self.warp * 32 + lane].warp_data;
        if (counters) count_warp_meeting(self.warp, operation, self.place.pc);
        if (combine) {
            // Its arithmetic is not the kernel's.
            Counters* const counted = counters;
            counters = nullptr;
            combine(lanes);
            counters = counted;
        }
        if (orders_memory) warp.epoch++;
        for (unsigned lane = 0; lane < 32; lane++)
            if (warp.present >> lane & 1) make_ready(block.threads[self.warp * 32 + lane]);
    }
    run_another(self);
}

uint3 emu_thread_index() { return block.running->index; }
uint3 emu_block_index() { return block.index; }
dim3 emu_block_size() { return block.size; }
dim3 emu_grid_size() { return block.grid; }
unsigned emu_lane() { return block.running->lane; }
