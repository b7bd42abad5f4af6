// Replaces the C library's <assert.h>, which ends the process and does not report the thread. There
// is no include guard: as with the original, every inclusion defines the macro again.
#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition) \
    ((condition) ? (void)0 : emu_fail("trap", "assert(" #condition ")", __FILE__, __LINE__))
#endif
