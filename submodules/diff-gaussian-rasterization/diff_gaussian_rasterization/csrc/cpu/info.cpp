// Description of the CPU library, and its error texts.
#include "../info.h"

const char* dgr_error_text(int32_t status) {
    switch (status) {
        case DGR_OK:
            return "no error";
        case DGR_OUT_OF_MEMORY:
            return "out of memory";
        case DGR_BAD_ARGUMENT:
            return "bad argument";
        default:
            return "unknown error";
    }
}

int32_t dgr_has_threads() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
