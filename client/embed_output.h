// What `ferrite embed` writes.
#pragma once

#include <cstdint>
#include <fstream>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "client/console.h"
#include "client/embed_options.h"
#include "ferrite/v1/inference.pb.h"

namespace ferrite {

// Writes the vectors of one command as its options say.
class EmbedOutput {
 public:
  EmbedOutput(const EmbedOptions& options, const Console& console);

  // InvalidArgument if the file of --output cannot be written.
  absl::Status Open();

  // Writes the answer for the inputs from `first` on, of which there are `count`. Internal if the
  // answer has another number of vectors, or vectors of another length than those before;
  // DataLoss if it cannot be written.
  absl::Status Write(int64_t first, int64_t count, const v1::EmbedResponse& response);

  // Whether nobody reads standard output any more.
  bool closed() const { return !to_file() && !console_.out; }

 private:
  bool to_file() const { return options_.output && *options_.output != "-"; }

  const EmbedOptions& options_;
  const Console& console_;
  std::ofstream file_;
  std::ostream* out_;
  int64_t dimensions_ = -1;  // of the first vector
};

}  // namespace ferrite
