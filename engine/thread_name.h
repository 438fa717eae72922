// Names threads for `top -H`, debuggers and tests.
#pragma once

#include <pthread.h>

namespace ferrite {

// Names the calling thread; at most 15 characters count.
inline void SetThreadName(const char* name) { pthread_setname_np(pthread_self(), name); }

}  // namespace ferrite
