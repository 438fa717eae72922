#include "engine/delivery.h"

#include <iterator>
#include <utility>

#include "engine/thread_name.h"

namespace ferrite {

Delivery::Delivery() : thread_([this] { Run(); }) {}

Delivery::~Delivery() {
  {
    MutexLock lock(&mutex_);
    closed_ = true;
    posted_.NotifyOne();
  }
  thread_.join();
}

void Delivery::Post(std::vector<std::shared_ptr<TokenStream>>* streams) {
  if (streams->empty()) {
    return;
  }
  MutexLock lock(&mutex_);
  if (queue_.empty()) {
    std::swap(queue_, *streams);
    posted_.NotifyOne();
    return;
  }
  queue_.insert(queue_.end(), std::make_move_iterator(streams->begin()),
                std::make_move_iterator(streams->end()));
  streams->clear();
}

void Delivery::Run() {
  SetThreadName("ferrite-deliver");
  std::vector<std::shared_ptr<TokenStream>> streams;
  while (true) {
    {
      MutexLock lock(&mutex_);
      while (queue_.empty() && !closed_) {
        posted_.Wait(&mutex_);
      }
      if (queue_.empty()) {
        return;
      }
      std::swap(streams, queue_);
    }
    for (const std::shared_ptr<TokenStream>& stream : streams) {
      stream->Notify();
    }
    streams.clear();
  }
}

}  // namespace ferrite
