// Empty: what kernels use of it is in cuda_shim.h, included before every .cu file.
#pragma once
