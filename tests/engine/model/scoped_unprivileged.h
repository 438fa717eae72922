// Gives up root's right to read everything, so that tests of permissions mean something.
#pragma once

#include <unistd.h>

namespace ferrite::test {

class ScopedUnprivileged {
 public:
  ScopedUnprivileged() : was_root_(geteuid() == 0) {
    if (was_root_) {
      active_ = seteuid(65534) == 0;
    }
  }
  ~ScopedUnprivileged() {
    if (was_root_ && active_) {
      active_ = seteuid(0) != 0;
    }
  }
  ScopedUnprivileged(const ScopedUnprivileged&) = delete;
  ScopedUnprivileged& operator=(const ScopedUnprivileged&) = delete;

  // Whether permissions apply now.
  bool active() const { return active_; }

 private:
  bool was_root_;
  bool active_ = true;
};

}  // namespace ferrite::test
