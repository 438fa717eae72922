#include "client/choice_writer.h"

#include "absl/strings/str_cat.h"

namespace ferrite {
namespace {

std::string FinishText(const v1::Choice& choice) {
  switch (choice.finish_reason()) {
    case v1::FINISH_REASON_STOP:
      if (choice.stop().has_token_id()) {
        return absl::StrCat("stop (token ", choice.stop().token_id(), ")");
      }
      return choice.stop().has_stop_string() ? "stop (stop string)" : "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_ABORTED:
      return "aborted";
    default:
      return "unknown";
  }
}

}  // namespace

bool ChoiceWriter::WriteText(const std::string& text) {
  if (text.empty()) return out_.good();
  line_open_ = text.back() != '\n';
  out_ << text << std::flush;
  return out_.good();
}

void ChoiceWriter::EndLine() {
  if (line_open_) WriteText("\n");
}

bool ChoiceWriter::ShowCurrent() {
  const auto held = held_.find(current_);
  if (held == held_.end()) return out_.good();
  if (several_ && !titled_) {
    EndLine();
    WriteText(absl::StrCat("--- choice ", current_, " ---\n"));
    titled_ = true;
  }
  const std::string text = std::move(held->second);
  held_.erase(held);
  return WriteText(text);
}

bool ChoiceWriter::Write(const v1::Choice& choice) {
  held_[choice.index()] += choice.text();
  if (choice.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    reasons_[choice.index()] = FinishText(choice);
  }
  bool good = ShowCurrent();
  while (reasons_.contains(current_)) {
    ++current_;
    titled_ = false;
    good = ShowCurrent();
  }
  return good;
}

void ChoiceWriter::Finish() {
  while (!held_.empty()) {
    if (held_.begin()->first != current_) titled_ = false;
    current_ = held_.begin()->first;
    ShowCurrent();
  }
  EndLine();
}

}  // namespace ferrite
