// How a kernel's failure reaches Python: one record in memory shared with the launching process.
#pragma once
#include <cstdarg>
#include <cstdint>

namespace emu {

// A place in the source: file and line, or an address inside the kernel's library (an offset from
// its start) that the loader turns into a line and those it was inlined from. All zero: unknown.
struct Place {
    const char* file = nullptr;
    int32_t line = 0;
    uint64_t pc = 0;
};

// Mirrored by report.py.
struct ReportedPlace {
    char file[256];
    int32_t line;
    uint32_t pad;
    uint64_t pc;
};
struct Report {
    char kind[32];
    char message[512];
    ReportedPlace where, other;
    uint32_t block[3], thread[3];
    int32_t in_thread;  // block and thread are meaningful
};

extern Report* report;

// Writes the record and ends this process, which exists for one launch only.
[[noreturn]] void fail(const char* kind, const Place& where, const Place& other, const char* format,
                       ...) __attribute__((format(printf, 4, 5)));

}  // namespace emu
