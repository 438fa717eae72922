#include "engine/waiting_line.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cmath>
#include <tuple>
#include <utility>

#include "engine/sequence.h"

namespace ferrite {

bool RunsBefore::operator()(const Sequence* a, const Sequence* b) const {
  const PlaceInLine& first = a->scheduling.place;
  const PlaceInLine& second = b->scheduling.place;
  return std::tie(first.turn, first.arrival) < std::tie(second.turn, second.arrival);
}

WaitingLine::WaitingLine(double aging_seconds)
    : aging_(std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double>(aging_seconds))) {}

void WaitingLine::Enter(Sequence* sequence) {
  PlaceInLine& place = sequence->scheduling.place;
  const EngineRequest& request = sequence->request();
  place.arrival = arrivals_++;
  place.turn = request.received - request.priority * aging_;
  ClientInLine& client = clients_.try_emplace(request.client).first->second;
  client.name = request.client;
  ++client.members;
  place.client = &client;
}

void WaitingLine::Forget(Sequence* sequence) {
  ClientInLine* const client = std::exchange(sequence->scheduling.place.client, nullptr);
  if (--client->members == 0) {
    assert(client->waiting.empty() && client->running == 0);
    clients_.erase(clients_.find(client->name));
  }
}

void WaitingLine::Add(Sequence* sequence) {
  sequence->scheduling.place.client->waiting.insert(sequence);
  ++size_;
}

void WaitingLine::Remove(Sequence* sequence) {
  size_ -= static_cast<int32_t>(sequence->scheduling.place.client->waiting.erase(sequence));
}

void WaitingLine::OnStarted(Sequence* sequence) { ++sequence->scheduling.place.client->running; }

void WaitingLine::OnStopped(Sequence* sequence) { --sequence->scheduling.place.client->running; }

Sequence* WaitingLine::Next(Clock::time_point now, uint64_t step) const {
  Sequence* best = nullptr;
  std::tuple<double, int32_t> best_rank;
  for (const auto& [name, client] : clients_) {
    const auto first = std::find_if(
        client.waiting.begin(), client.waiting.end(),
        [&](const Sequence* sequence) { return sequence->scheduling.place.passed_over != step; });
    if (first == client.waiting.end()) {
      continue;
    }
    const std::chrono::duration<double> waited = now - (*first)->scheduling.place.turn;
    const std::tuple<double, int32_t> rank = {-std::floor(waited / aging_), client.running};
    if (best == nullptr || rank < best_rank || (rank == best_rank && RunsBefore()(*first, best))) {
      best = *first;
      best_rank = rank;
    }
  }
  return best;
}

void WaitingLine::PassOver(Sequence* sequence, uint64_t step) {
  sequence->scheduling.place.passed_over = step;
}

void WaitingLine::ForEach(const std::function<void(Sequence*)>& visit) const {
  for (const auto& [name, client] : clients_) {
    std::for_each(client.waiting.begin(), client.waiting.end(), visit);
  }
}

}  // namespace ferrite
