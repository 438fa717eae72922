#include "server/fingerprint.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/model_digest.h"
#include "engine/status_macros.h"

namespace ferrite {

absl::StatusOr<std::string> Fingerprint(const std::string& model_digest,
                                        const std::vector<const BackendInfo*>& workers) {
  ASSIGN_OR_RETURN(const std::string program, DigestFile("/proc/self/exe"));
  std::set<std::string> kinds;
  for (const BackendInfo* info : workers) {
    kinds.insert(absl::StrCat(info->platform, ", ", info->compute_type,
                              info->deterministic ? ", deterministic" : ""));
  }
  const std::string all = absl::StrCat(model_digest, "\n", FERRITE_VERSION, "\n", program, "\n",
                                       absl::StrJoin(kinds, "\n"));
  return absl::StrCat("fp-", DigestText(all).substr(0, 16));
}

}  // namespace ferrite
