#error "cooperative_groups is not emulated: use __syncthreads, __syncwarp and full-warp shuffles"
