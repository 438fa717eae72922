// Tells stream listeners of new output, on a thread of its own: never on a worker's.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "engine/mutex.h"
#include "engine/token_stream.h"

namespace ferrite {

class Delivery {
 public:
  Delivery();
  // Delivers what was posted, then joins.
  ~Delivery();
  Delivery(const Delivery&) = delete;
  Delivery& operator=(const Delivery&) = delete;

  // Takes the streams and leaves the vector empty, with its capacity. Blocks no longer than it
  // takes to append to a vector.
  void Post(std::vector<std::shared_ptr<TokenStream>>* streams);

 private:
  void Run();

  Mutex mutex_;
  CondVar posted_;
  std::vector<std::shared_ptr<TokenStream>> queue_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ferrite
