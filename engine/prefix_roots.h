// Who may share cached prefixes with whom.
#pragma once

#include <string>

#include "absl/container/flat_hash_map.h"
#include "engine/mutex.h"
#include "engine/prefix_index.h"

namespace ferrite {

// Thread-safe.
class PrefixRoots {
 public:
  // The same for the same salt, kSharedRoot for none, and never the same for two. A salt that has
  // not been used for long may get another root: what was cached with it is then not found again.
  PrefixId Of(const std::string& salt);

  // One that nobody else has.
  PrefixId Fresh();

  static constexpr size_t kMostSalts = 4096;

 private:
  Mutex mutex_;
  PrefixId last_ ABSL_GUARDED_BY(mutex_) = kSharedRoot;
  absl::flat_hash_map<std::string, PrefixId> salts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ferrite
