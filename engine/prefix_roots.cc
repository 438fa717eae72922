#include "engine/prefix_roots.h"

namespace ferrite {

PrefixId PrefixRoots::Of(const std::string& salt) {
  if (salt.empty()) {
    return kSharedRoot;
  }
  MutexLock lock(&mutex_);
  if (const auto found = salts_.find(salt); found != salts_.end()) {
    return found->second;
  }
  if (salts_.size() >= kMostSalts) {
    salts_.clear();
  }
  return salts_[salt] = ++last_;
}

PrefixId PrefixRoots::Fresh() {
  MutexLock lock(&mutex_);
  return ++last_;
}

}  // namespace ferrite
