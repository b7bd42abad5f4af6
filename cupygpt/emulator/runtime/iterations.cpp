// g++ calls a function of this file where each basic block starts (-fsanitize-coverage=trace-pc).
// It follows each lane through the loops of the kernel. So accesses are put together as a GPU
// does: lanes that leave an inner loop wait for the others before the outer loop goes on.
#include "iterations.h"

#include <vector>

#include "block.h"
#include "checker.h"
#include "counters.h"

namespace emu {

namespace {

const LoopAround* loops = nullptr;

// A basic block, and its number among those that were counted, from 1 on.
struct Code {
    int32_t innermost = -1, begins = -1;
    uint32_t number = 0;
};
std::vector<Code> code;  // by offset

struct Round {
    int32_t loop;
    uint64_t number, outer_key;
};

// A function that a lane is in. The stack of what it calls lies lower.
struct Call {
    uintptr_t stack;
    size_t first_round;
    uint64_t outer_key;
};

// One lane since its warp last met.
struct LaneTrace {
    std::vector<Round> rounds;  // of the loops that the lane is in, outermost first
    std::vector<Call> calls;
    uint64_t last_pc = 0, key = 0;

    void forget() {
        rounds.clear(), calls.clear();
        key = 0, last_stack = 0;
    }
    void begin_block(uint64_t pc, const Code& at, uintptr_t stack) {
        if (stack != last_stack || at.innermost != innermost)
            change_loop(at, stack);
        else if (at.begins >= 0 && at.begins == innermost)
            begin_round();
        last_pc = pc;
    }

private:
    uintptr_t last_stack = 0;  // 0: nothing is known
    int32_t innermost = -1;    // the loop of the last block

    void begin_round() {
        Round& round = rounds.back();
        key = mixed(mixed(round.outer_key, round.loop), ++round.number);
    }
    void change_loop(const Code& at, uintptr_t stack);
    void leave_rounds(size_t left) {
        if (rounds.size() <= left) return;
        key = rounds[left].outer_key;
        rounds.resize(left);
    }
    void follow_calls(uintptr_t stack);
    void enter_loops(int32_t innermost, size_t first);
};

bool holds(int32_t loop, int32_t inner) {
    while (inner >= 0 && loops[inner].depth > loops[loop].depth) inner = loops[inner].parent;
    return loop == inner;
}

void LaneTrace::follow_calls(uintptr_t stack) {
    while (!calls.empty() && calls.back().stack < stack) {
        leave_rounds(calls.back().first_round);
        key = calls.back().outer_key;
        calls.pop_back();
    }
    if (!calls.empty() && calls.back().stack == stack) return;
    calls.push_back({stack, rounds.size(), key});
    if (calls.size() > 1) key = mixed(key, last_pc);  // the same function, called elsewhere
}

void LaneTrace::enter_loops(int32_t innermost, size_t first) {
    const int32_t around = rounds.size() > first ? rounds.back().loop : -1;
    if (innermost == around) return;
    const int32_t parent = loops[innermost].parent;
    if (parent >= 0) enter_loops(parent, first);
    rounds.push_back({innermost, 0, key});
    key = mixed(mixed(key, innermost), 0);
}

// The block lies in another loop than the last one, or in another function.
void LaneTrace::change_loop(const Code& at, uintptr_t stack) {
    follow_calls(stack);
    const size_t first = calls.back().first_round;
    size_t kept = rounds.size();
    while (kept > first && !holds(rounds[kept - 1].loop, at.innermost)) kept--;
    leave_rounds(kept);
    if (at.begins >= 0 && rounds.size() > first && rounds.back().loop == at.begins)
        begin_round();
    else if (at.innermost >= 0)
        enter_loops(at.innermost, first);
    last_stack = stack;
    innermost = at.innermost;
}

struct WarpTrace {
    LaneTrace lanes[32];
    // By basic block: how often each lane has come by since the warp last met.
    std::vector<uint32_t> passes;
    std::vector<uint32_t> passed;  // the blocks with passes
};

std::vector<WarpTrace> traces;

Code& code_at(uint64_t pc) {
    if (code.size() <= pc) code.resize(pc + 65536);
    Code& here = code[pc];
    if (here.number) return here;
    if (counters->num_basic_blocks == kMostBasicBlocks)
        fail("unsupported", {nullptr, 0, pc}, {}, "a kernel with over %u basic blocks to count",
             kMostBasicBlocks);
    counters->basic_blocks[counters->num_basic_blocks].pc = pc;
    here.number = ++counters->num_basic_blocks;
    return here;
}

void note_pass(WarpTrace& warp, unsigned lane, uint32_t number) {
    if (warp.passes.size() <= number * 32) warp.passes.resize((number + 64) * 32);
    uint32_t* passes = &warp.passes[number * 32];
    if (!passes[lane]++) {
        for (unsigned other = 0; other < 32; other++)
            if (other != lane && passes[other]) return;
        warp.passed.push_back(number);
    }
}

}  // namespace

void start_iterations(const BlockInLoop* blocks, size_t num_blocks, const LoopAround* around,
                      size_t warps_of_block) {
    loops = around;
    for (size_t i = 0; i < num_blocks; i++) {
        if (code.size() <= blocks[i].pc) code.resize(blocks[i].pc + 65536);
        code[blocks[i].pc] = {blocks[i].innermost, blocks[i].begins};
    }
    traces.resize(warps_of_block);
}

uint64_t iteration_key(const Thread& thread) {
    return traces[thread.warp].lanes[thread.lane].key;
}

void forget_iterations(unsigned number) {
    WarpTrace& warp = traces[number];
    for (LaneTrace& lane : warp.lanes) lane.forget();
    for (uint32_t i : warp.passed) {
        uint32_t* passes = &warp.passes[i * 32];
        BasicBlockCounts& counts = counters->basic_blocks[i];
        uint32_t most = 0;
        for (int lane = 0; lane < 32; lane++) {
            if (passes[lane] > most) most = passes[lane];
            counts.lanes += passes[lane];
            passes[lane] = 0;
        }
        counts.warps += most;
    }
    warp.passed.clear();
}

}  // namespace emu

using namespace emu;

extern "C" void __sanitizer_cov_trace_pc() {
    if (!counters || !block.running) return;
    const Thread& self = *block.running;
    const uint64_t pc = module_offset(uintptr_t(__builtin_return_address(0)));
    const Code& here = code_at(pc);
    WarpTrace& warp = traces[self.warp];
    warp.lanes[self.lane].begin_block(pc, here, uintptr_t(__builtin_frame_address(0)));
    note_pass(warp, self.lane, here.number - 1);
}
