// Whose turn it is.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <unordered_map>

#include "engine/clock.h"

namespace ferrite {

class Sequence;

// What a waiting line keeps of a sequence. Only the line reads and writes it, but for `arrival`.
struct PlaceInLine {
  uint64_t arrival = 0;    // order of arrival
  Clock::time_point turn;  // when it came, earlier by what its priority is worth
  struct ClientInLine* client = nullptr;
  uint64_t passed_over = 0;  // the step in which it cannot start
};

// Of two sequences of one client the one whose turn is earlier runs before the other.
struct RunsBefore {
  bool operator()(const Sequence* a, const Sequence* b) const;
};

struct ClientInLine {
  std::string name;
  std::set<Sequence*, RunsBefore> waiting;
  int32_t running = 0;
  int32_t members = 0;  // sequences that the line knows of
};

// Sequences that wait, and how many each client has running. A level of priority is worth
// `aging_seconds` of waiting: whatever comes later, a sequence is outranked only by those whose
// priority makes up for that, so that none waits for ever. Among those of the same rank it is the
// turn of the client with the fewest sequences running, and of its oldest sequence.
// Thread-compatible.
class WaitingLine {
 public:
  explicit WaitingLine(double aging_seconds);

  // A sequence that is new to the line; Forget ends what Enter began.
  void Enter(Sequence* sequence);
  void Forget(Sequence* sequence);

  // Of a sequence that has entered: it waits, or does no longer.
  void Add(Sequence* sequence);
  void Remove(Sequence* sequence);

  // It runs (and does not wait), or does no longer.
  void OnStarted(Sequence* sequence);
  void OnStopped(Sequence* sequence);

  // The one to start next, but for those passed over in `step`; null if there is none.
  Sequence* Next(Clock::time_point now, uint64_t step) const;
  void PassOver(Sequence* sequence, uint64_t step);

  void ForEach(const std::function<void(Sequence*)>& visit) const;
  int32_t size() const { return size_; }

 private:
  const Clock::duration aging_;
  std::unordered_map<std::string, ClientInLine> clients_;
  uint64_t arrivals_ = 0;
  int32_t size_ = 0;
};

}  // namespace ferrite
