#error "cub is not emulated: write the reduction with full-warp shuffles"
