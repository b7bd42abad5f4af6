// Replaces the C library's <assert.h>, which ends the process instead of reporting a thread.
// No include guard, like the original: every inclusion defines the macro anew.
#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition) \
    ((condition) ? (void)0 : emu_fail("trap", "assert(" #condition ")", __FILE__, __LINE__))
#endif
