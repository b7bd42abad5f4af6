#include "checker.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <vector>

#include "block.h"
#include "stamp.h"

namespace emu {

// The history of one granule. `pending` is the place of an asynchronous copy that is in flight.
struct Cell {
    Stamp write, read;
    uint32_t write_pc, read_pc, pending;
};

constexpr unsigned kSharedGranule = 2;  // a bfloat16

struct Shadow {
    uintptr_t begin;
    uint64_t bytes;
    unsigned granule;
    Cell* cells;
};

struct Array {
    uintptr_t begin, end;
    Shadow* shadow;
    const GlobalArray* given;
};

const Memory* checked_memory = nullptr;
uintptr_t last_access_pc = 0;
static Shadow shared_shadow;
static std::vector<Shadow> shadows;
static std::vector<Array> arrays;

uint64_t module_offset(uintptr_t pc) {
    if (!checked_memory) return 0;
    const Memory& memory = *checked_memory;
    // One byte before the return address lies inside the call, so on its line.
    return pc > memory.module_begin && pc <= memory.module_end ? pc - memory.module_begin - 1 : 0;
}

static Cell* map_cells(uint64_t bytes, unsigned granule) {
    // New pages hold zeros, and only pages that are accessed take memory.
    size_t size = (bytes / granule + 2) * sizeof(Cell);
    void* cells = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cells == MAP_FAILED)
        fail("crash", {}, {}, "no address space for %zu bytes of shadow", size);
    return static_cast<Cell*>(cells);
}

void start_checking(const Memory& memory) {
    checked_memory = &memory;
    shared_shadow = {uintptr_t(memory.shared), memory.shared_bytes, kSharedGranule,
                     map_cells(memory.shared_bytes, kSharedGranule)};
    shadows.reserve(memory.num_global_arrays);  // Array::shadow points into it
    for (uint64_t i = 0; i < memory.num_global_arrays; i++) {
        const GlobalArray& given = memory.global_arrays[i];
        Shadow* found = nullptr;
        for (Shadow& shadow : shadows)
            if (shadow.begin == given.allocation_begin) found = &shadow;
        if (!found) {
            shadows.push_back({uintptr_t(given.allocation_begin), given.allocation_bytes,
                               given.granule, nullptr});
            found = &shadows.back();
        }
        if (given.granule < found->granule) found->granule = given.granule;
        arrays.push_back(
            {uintptr_t(given.begin), uintptr_t(given.begin + given.bytes), found, &given});
    }
    for (Shadow& shadow : shadows) shadow.cells = map_cells(shadow.bytes, shadow.granule);
}

static const char* verb(int access) {
    return access == EMU_READ ? "read" : access == EMU_WRITE ? "write" : "atomic";
}

struct Access {
    uintptr_t pc;
    uintptr_t address;
    size_t bytes;
    int kind;
    Stamp now;
    const char* shared_array;  // the array that is accessed: this shared one, or else an argument
    const GlobalArray* argument;
    uint64_t offset;  // in bytes, from the start of the array
    Target target;

    Place place() const { return {nullptr, 0, module_offset(pc)}; }
};

// "inp[25]", or "inp + 101 bytes" for an address inside an element. Negative before its start.
static void name_element(char* text, size_t size, const GlobalArray& array, long offset) {
    const long item = array.item_bytes;
    if (offset % item == 0)
        snprintf(text, size, "%s[%ld]", array.name, offset / item);
    else
        snprintf(text, size, "%s %c %ld bytes", array.name, offset < 0 ? '-' : '+', labs(offset));
}

// "4-byte read at inp[25]", "4-byte read at shared tile + 12"
struct Description {
    char text[128];
    explicit Description(const Access& a) {
        int n = snprintf(text, sizeof text, "%zu-byte %s at ", a.bytes, verb(a.kind));
        if (a.shared_array)
            snprintf(text + n, sizeof text - n, "shared %s + %lu", a.shared_array, a.offset);
        else
            name_element(text + n, sizeof text - n, *a.argument, long(a.offset));
    }
};

[[noreturn]] static void report_race(const Access& access, Stamp earlier, uint32_t earlier_pc,
                                     const char* earlier_verb) {
    const uint3 b = unravel(block_of(earlier), block.grid);
    const uint3 t = unravel(thread_of(earlier), block.size);
    fail("race", access.place(), {nullptr, 0, earlier_pc},
         "%s races with an earlier %s by block (%u, %u, %u), thread (%u, %u, %u)",
         Description(access).text, earlier_verb, b.x, b.y, b.z, t.x, t.y, t.z);
}

static void touch(Cell& cell, const Access& access, bool shared) {
    const Stamp now = access.now;
    if (shared) {
        // What earlier blocks did to shared memory does not count.
        if (cell.write && !same_block(cell.write, now)) cell.write = 0;
        if (cell.read && !same_block(cell.read, now)) cell.read = 0;
        if (cell.pending)
            fail("async_copy", access.place(), {nullptr, 0, cell.pending},
                 "%s while a cp.async into it is in flight: wait for it first",
                 Description(access).text);
        if (!cell.write && access.kind != EMU_WRITE)
            fail("uninitialised", access.place(), {}, "%s, which nobody has written",
                 Description(access).text);
    }
    const bool both_atomic = access.kind == EMU_ATOMIC && cell.write & kAtomic;
    if (cell.write && !both_atomic && !ordered(cell.write, now))
        report_race(access, cell.write, cell.write_pc, cell.write & kAtomic ? "atomic" : "write");
    if (access.kind == EMU_READ) {
        cell.read = now | other_readers(cell.read, now);
        cell.read_pc = module_offset(access.pc);
        return;
    }
    if (!all_reads_ordered(cell.read, now)) report_race(access, cell.read, cell.read_pc, "read");
    cell.write = now | (access.kind == EMU_ATOMIC ? kAtomic : 0);
    cell.write_pc = module_offset(access.pc);
}

template <class Function>
static void for_cells(const Shadow& shadow, uintptr_t address, size_t bytes, Function function) {
    uint64_t first = (address - shadow.begin) / shadow.granule;
    uint64_t last = (address + bytes - 1 - shadow.begin) / shadow.granule;
    for (uint64_t i = first; i <= last; i++) function(shadow.cells[i]);
}

static void check_alignment(const Access& access) {
    const size_t n = access.bytes;
    if (n <= 16 && !(n & (n - 1)) && access.address & (n - 1))
        fail("misaligned", access.place(), {}, "%s: the address is no multiple of %zu",
             Description(access).text, n);
}

static void check_shared(Access& access) {
    const Memory& memory = *checked_memory;
    static const SharedArray* last = nullptr;  // kernels touch the same array again and again
    const uint64_t offset = access.address - uintptr_t(memory.shared);
    auto holds = [offset](const SharedArray& a) {
        return offset >= a.offset && offset < a.offset + a.bytes;
    };
    if (!last || !holds(*last)) {
        last = nullptr;
        for (uint64_t i = 0; i < memory.num_shared_arrays; i++)
            if (holds(memory.shared_arrays[i])) last = &memory.shared_arrays[i];
    }
    const SharedArray* nearest = last;
    if (!last) {  // between or after the arrays: name the one that begins before it
        for (uint64_t i = 0; i < memory.num_shared_arrays; i++) {
            const SharedArray& a = memory.shared_arrays[i];
            if (a.offset <= offset && (!nearest || a.offset > nearest->offset)) nearest = &a;
        }
    }
    access.shared_array = nearest ? nearest->name : "memory";
    access.offset = nearest ? offset - nearest->offset : offset;
    const uint64_t size = nearest ? nearest->bytes : 0;
    if (access.offset + access.bytes > size)
        fail("out_of_bounds", access.place(), {}, "%s; the array has %lu bytes",
             Description(access).text, size);
    access.target.space = Target::shared;
    access.target.array = nearest - memory.shared_arrays;
    access.target.offset = access.offset;
    check_alignment(access);
    for_cells(shared_shadow, access.address, access.bytes,
              [&](Cell& cell) { touch(cell, access, true); });
}

// Further from an array than this, nobody can say which one the kernel meant. It is less than the
// guards of two neighbours (arrays.py).
constexpr uintptr_t kNear = 1 << 20;

[[noreturn]] static void report_wild(const Access& access) {
    // Name the nearest argument: the kernel most likely ran past its end.
    const Array* nearest = nullptr;
    uintptr_t distance = ~uintptr_t(0);
    for (const Array& array : arrays) {
        uintptr_t d = access.address < array.begin ? array.begin - access.address
                      : access.address < array.end ? 0
                                                   : access.address - array.end;
        if (d < distance) distance = d, nearest = &array;
    }
    if (access.address < 4096)
        fail("out_of_bounds", access.place(), {}, "%s of %zu bytes through a null pointer",
             verb(access.kind), access.bytes);
    if (!nearest)
        fail("out_of_bounds", access.place(), {}, "%s of %zu bytes: the kernel has no such array",
             verb(access.kind), access.bytes);
    if (distance > kNear)
        fail("out_of_bounds", access.place(), {},
             "%zu-byte %s at an address outside all arrays, %lu bytes %s the nearest one, %s",
             access.bytes, verb(access.kind), (unsigned long)distance,
             access.address < nearest->begin ? "before" : "after", nearest->given->name);
    char element[96];
    name_element(element, sizeof element, *nearest->given, long(access.address - nearest->begin));
    fail("out_of_bounds", access.place(), {}, "%zu-byte %s at %s; %s has %lu elements of %u bytes",
         access.bytes, verb(access.kind), element, nearest->given->name,
         (unsigned long)(nearest->given->bytes / nearest->given->item_bytes),
         nearest->given->item_bytes);
}

static void check_global(Access& access) {
    static const Array* last = nullptr;
    auto holds = [&access](const Array& a) {
        return access.address >= a.begin && access.address + access.bytes <= a.end;
    };
    if (!last || !holds(*last)) {
        last = nullptr;
        for (const Array& array : arrays)
            if (holds(array)) last = &array;
    }
    if (!last) report_wild(access);
    access.argument = last->given;
    access.offset = access.address - last->begin;
    access.target.space = Target::global;
    access.target.array = last->given - checked_memory->global_arrays;
    access.target.allocation = last->shadow - shadows.data();
    access.target.offset = access.address - last->shadow->begin;
    check_alignment(access);
    for_cells(*last->shadow, access.address, access.bytes,
              [&](Cell& cell) { touch(cell, access, false); });
}

static bool inside(uintptr_t address, uintptr_t begin, uint64_t bytes) {
    return address - begin < bytes;
}

Target check_access(uintptr_t pc, const void* pointer, size_t bytes, int kind) {
    last_access_pc = pc;
    const Memory* memory = checked_memory;
    if (!memory || !block.running || !bytes) return {};
    const auto address = uintptr_t(pointer);
    if (inside(address, uintptr_t(memory->stacks), memory->stacks_bytes)) return {};
    Access access{pc, address, bytes, kind, stamp_now(), nullptr, nullptr, 0, {}};
    if (inside(address, uintptr_t(memory->shared), memory->shared_bytes)) {
        check_shared(access);
        return access.target;
    }
    if (inside(address, memory->module_begin, memory->module_end - memory->module_begin)) {
        if (kind == EMU_READ) return {};  // __constant__ tables and literals
        fail("unsupported", access.place(), {},
             "a write to a variable outside the kernel: only arguments and shared memory are "
             "emulated");
    }
    check_global(access);
    return access.target;
}

Target begin_async_write(uintptr_t pc, const void* address, size_t bytes) {
    const Target target = check_access(pc, address, bytes, EMU_WRITE);
    if (!inside(uintptr_t(address), shared_shadow.begin, shared_shadow.bytes))
        fail("async_copy", {nullptr, 0, module_offset(pc)}, {},
             "the destination of a cp.async is not in shared memory");
    for_cells(shared_shadow, uintptr_t(address), bytes,
              [pc](Cell& cell) { cell.pending = module_offset(pc); });
    return target;
}

void end_async_write(uintptr_t pc, const void* address, size_t bytes) {
    for_cells(shared_shadow, uintptr_t(address), bytes, [](Cell& cell) { cell.pending = 0; });
    check_access(pc, address, bytes, EMU_WRITE);
}

}  // namespace emu
