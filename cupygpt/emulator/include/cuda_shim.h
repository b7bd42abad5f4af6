// Included by the compiler before every emulated .cu file.
#pragma once
// System headers first: what follows redefines names that they use.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <type_traits>
#include <utility>

#include "emulator_abi.h"
#include "vector_types.h"
#include "math_functions.h"
#include "kernel_entry.h"
#include "atomics.h"
#include "builtins.h"
#include "memory.h"
#include "warp.h"
#include "assert.h"
// Last: these are macros.
#include "keywords.h"

// For code that needs another form under the emulator, such as cuda/lib/ptx.cuh.
#define CUPYGPT_EMULATOR 1
#define __CUDACC__ 1
#define __CUDACC_RTC__ 1
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 800
#endif
