// One launch: a child process runs the blocks one after another, on memory shared with its parent.
// Whatever a kernel does to its process, the process that launched it survives.
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <link.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "block.h"
#include "checker.h"

namespace emu {

// Mirrored by launching.py.
struct LaunchRequest {
    void (*body)(void**);
    void** arguments;
    uint32_t grid[3], block[3];
    char* shared;  // the launching thread's copy of the module's shared memory
    uint64_t shared_bytes;
    const SharedArray* shared_arrays;
    uint64_t num_shared_arrays;
    const GlobalArray* global_arrays;
    uint64_t num_global_arrays;
    int32_t checked;
    int32_t timeout_s;   // of CPU time
    const CountingRequest* counting;  // null: nothing is counted
};

static Memory memory;

struct Segment {
    uintptr_t probe, begin, end;
};

// Finds the library that holds `probe`.
static int find_module(dl_phdr_info* info, size_t, void* data) {
    auto* wanted = static_cast<Segment*>(data);
    uintptr_t begin = ~uintptr_t(0), end = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& header = info->dlpi_phdr[i];
        if (header.p_type != PT_LOAD) continue;
        begin = std::min<uintptr_t>(begin, info->dlpi_addr + header.p_vaddr);
        end = std::max<uintptr_t>(end, info->dlpi_addr + header.p_vaddr + header.p_memsz);
    }
    if (wanted->probe < begin || wanted->probe >= end) return 0;
    // addr2line counts offsets from the load address.
    wanted->begin = info->dlpi_addr;
    wanted->end = end;
    return 1;
}

static uintptr_t interrupted_at(void* context) {
    auto* saved = static_cast<ucontext_t*>(context);
#if defined(__x86_64__)
    return saved->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
    return saved->uc_mcontext.pc;
#else
    (void)saved;
    return 0;
#endif
}

static bool on_guard_page(uintptr_t address) {
    const uintptr_t offset = address - uintptr_t(memory.stacks);
    return offset < memory.stacks_bytes && offset % (kStackBytes + kGuardBytes) < kGuardBytes;
}

static void on_signal(int number, siginfo_t* info, void* context) {
    uintptr_t pc = interrupted_at(context);
    if (pc < memory.module_begin || pc >= memory.module_end) pc = last_access_pc;
    checked_memory = &memory;  // module_offset() needs the bounds without the checker too
    const Place place{nullptr, 0, module_offset(pc + 1)};
    const auto address = uintptr_t(info->si_addr);
    if (number == SIGPROF)
        fail("timeout", place, {}, "the kernel has not finished in its CPU time: an endless loop?");
    if (number == SIGFPE) fail("crash", place, {}, "integer division by zero");
    if (number == SIGSEGV && on_guard_page(address))
        fail("crash", place, {}, "stack overflow: over %zu KiB of local variables",
             kStackBytes >> 10);
    fail("crash", place, {}, "%s at address %#lx", strsignal(number), (unsigned long)address);
}

static void catch_signals(int timeout_s) {
    static char stack[64 << 10];
    stack_t alternate = {};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGPROF})
        sigaction(number, &action, nullptr);
    signal(SIGINT, SIG_DFL);  // replaces Python's handler, which would only set a flag
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_UNBLOCK, &all, nullptr);
    itimerval timer = {{0, 0}, {timeout_s, 0}};
    setitimer(ITIMER_PROF, &timer, nullptr);
}

// Fills shared memory with NaN in every float type, so that runs without the checker notice too.
static void forget_shared_memory() {
    for (uint64_t i = 0; i < memory.num_shared_arrays; i++) {
        const SharedArray& array = memory.shared_arrays[i];
        memset(memory.shared + array.offset, 0xff, array.bytes);
    }
}

static void run_grid(const LaunchRequest& request) {
    const uint32_t *g = request.grid, *b = request.block;
    const unsigned threads = b[0] * b[1] * b[2];
    block.size = {b[0], b[1], b[2]};
    block.grid = {g[0], g[1], g[2]};
    block.body = request.body;
    block.arguments = request.arguments;
    block.threads.resize(threads);
    block.warps.resize((threads + 31) / 32);
    block.stacks = map_stacks(threads);
    if (!block.stacks)
        fail("crash", {}, {}, "no address space for the stacks of %u threads", threads);

    memory.shared = request.shared;
    memory.shared_bytes = request.shared_bytes;
    memory.shared_arrays = request.shared_arrays;
    memory.num_shared_arrays = request.num_shared_arrays;
    memory.global_arrays = request.global_arrays;
    memory.num_global_arrays = request.num_global_arrays;
    memory.stacks = block.stacks;
    memory.stacks_bytes = threads * (kStackBytes + kGuardBytes);
    Segment module{uintptr_t(request.body), 0, 0};
    dl_iterate_phdr(find_module, &module);
    memory.module_begin = module.begin;
    memory.module_end = module.end;
    if (request.checked) start_checking(memory);
    if (request.counting) start_counting(*request.counting, block.warps.size());
    catch_signals(request.timeout_s);

    uint32_t number = 0;
    for (uint32_t z = 0; z < g[2]; z++)
        for (uint32_t y = 0; y < g[1]; y++)
            for (uint32_t x = 0; x < g[0]; x++) {
                forget_shared_memory();
                run_block({x, y, z}, number++);
            }
}

}  // namespace emu

using namespace emu;

void* emu_shared_memory() { return memory.shared; }

extern "C" {

// 0: the kernel ran. 1: `report` says what went wrong. Negative: no process could be started.
int emu_launch(const LaunchRequest* request, Report* shared_report) {
    fflush(nullptr);  // otherwise the child would print the parent's buffers again
    const pid_t child = fork();
    if (child < 0) return -errno;
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        report = shared_report;
        run_grid(*request);
        fflush(stdout);
        _exit(0);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return -errno;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 0;
    if (!shared_report->kind[0]) {
        snprintf(shared_report->kind, sizeof shared_report->kind, "crash");
        if (WIFSIGNALED(status))
            snprintf(shared_report->message, sizeof shared_report->message,
                     "the kernel's process was ended by: %s", strsignal(WTERMSIG(status)));
        else
            snprintf(shared_report->message, sizeof shared_report->message,
                     "the kernel's process exited with status %d", WEXITSTATUS(status));
    }
    return 1;
}

}  // extern "C"
