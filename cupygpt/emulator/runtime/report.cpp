#include "report.h"

#include <cstdio>
#include <cstring>
#include <unistd.h>

#include "block.h"
#include "checker.h"

namespace emu {

Report* report = nullptr;

static void record(ReportedPlace& to, const Place& from) {
    if (from.file) snprintf(to.file, sizeof to.file, "%s", from.file);
    to.line = from.line;
    to.pc = from.pc;
}

void fail(const char* kind, const Place& where, const Place& other, const char* format, ...) {
    snprintf(report->kind, sizeof report->kind, "%s", kind);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(report->message, sizeof report->message, format, arguments);
    va_end(arguments);
    record(report->where, where);
    record(report->other, other);
    if (Thread* thread = block.running) {
        const uint3 &b = block.index, &t = thread->index;
        const unsigned at[6] = {b.x, b.y, b.z, t.x, t.y, t.z};
        memcpy(report->block, at, sizeof at);
        report->in_thread = 1;
    }
    fflush(stdout);  // what the kernel has printed until now
    _exit(1);
}

}  // namespace emu

extern "C" void emu_fail(const char* kind, const char* message, const char* file, int line) {
    const uint64_t pc = emu::module_offset(uintptr_t(__builtin_return_address(0)));
    emu::fail(kind, {file, line, pc}, {}, "%s", message);
}
