// Calls that send tensors and receive an answer for each.
#ifndef NNI_COMPRESSION_CLIENT_CPP_TRANSFER_H_
#define NNI_COMPRESSION_CLIENT_CPP_TRANSFER_H_

#include <google/protobuf/message_lite.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/connection.h"
#include "client/cpp/replies.h"
#include "client/cpp/shared_memory.h"
#include "client/cpp/stream.h"
#include "client/cpp/upload.h"

namespace nni_compression::internal {

// Elements of a checked tensor.
int64_t Elements(const Tensor& tensor);

// Payload bytes of the tensors.
int64_t TotalBytes(absl::Span<const Tensor* const> tensors);

// Repeats the call `method` until every tensor has an answer or the error is final; an attempt
// sends the tensors that have no answer yet. Tensors without an answer get the call's error. The
// reader is a MaskReader or QuantizeReader, made by `make_reader(sent, results)`. Large weights go
// through shared memory if possible; `result_bytes` is the size of their answers. `joint` has the
// rule of each tensor whose layer is decided about together with others, -1 for the rest, or is
// empty.
template <typename T, typename MakeReader>
std::vector<absl::StatusOr<T>> Transfer(const Connection& connection, const std::string& method,
                                        const Route& route,
                                        const google::protobuf::MessageLite& open,
                                        absl::Span<const Tensor> tensors,
                                        const CallOptions& options,
                                        const SharedCall::ResultBytes& result_bytes,
                                        absl::Span<const int> joint, MakeReader make_reader) {
  using Results = std::vector<std::optional<absl::StatusOr<T>>>;
  Results results(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (absl::Status checked = CheckTensor(tensors[i]); !checked.ok()) results[i] = checked;
  }
  std::vector<bool> refused(tensors.size());  // the server may not know its region
  Progress progress;
  const auto report = [&] {
    if (options.progress) options.progress(progress);
  };
  const auto once = [&](absl::Time deadline) {
    std::vector<const Tensor*> sent;
    std::vector<const Tensor*> shareable;
    std::vector<size_t> position;
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (results[i]) continue;
      sent.push_back(&tensors[i]);
      shareable.push_back(refused[i] ? nullptr : &tensors[i]);
      position.push_back(i);
    }
    if (sent.empty()) return Outcome{};
    const int64_t answered_before = progress.answered;
    const int64_t sent_before = progress.total_bytes - TotalBytes(sent);
    SharedCall shared(&connection.shared_memory(), shareable, result_bytes);
    Loans loans;
    Upload::Options upload_options;
    upload_options.checksum = connection.options().checksum;
    upload_options.shared = &shared;
    upload_options.on_message = [&](int64_t sent_bytes) {
      progress.sent_bytes = sent_before + sent_bytes;
      report();
    };
    Upload upload(open, sent, upload_options, loans);
    Results answers(sent.size());
    auto reader = make_reader(absl::MakeConstSpan(sent), answers);
    reader.ReadFrom(&shared);
    Outcome outcome = RunStream(connection, {method, route, deadline}, upload, loans,
                                [&](const grpc::ByteBuffer& message) {
                                  absl::Status status = reader.Read(message);
                                  progress.answered = answered_before + reader.answered();
                                  report();
                                  return status;
                                });
    const auto rule_of = [&](size_t i) { return joint.empty() ? -1 : joint[position[i]]; };
    std::set<int> incomplete;  // joint rules whose other tensors failed because one was refused
    for (size_t i = 0; i < answers.size(); ++i) {
      // Either the layer or the region is unknown: the next attempt, without a region, tells which.
      if (!answers[i] || !shared.Used(i)) continue;
      if (answers[i]->status().code() != absl::StatusCode::kNotFound) continue;
      refused[position[i]] = true;
      if (rule_of(i) >= 0) incomplete.insert(rule_of(i));
    }
    size_t unanswered = 0;
    for (size_t i = 0; i < answers.size(); ++i) {
      if (!answers[i]) {
        ++unanswered;
        continue;
      }
      outcome.progress = true;
      if (const bool lost = shared.Used(i) && refused[position[i]];
          lost || (!answers[i]->ok() && incomplete.count(rule_of(i)) > 0)) {
        --progress.answered;
        continue;
      }
      results[position[i]] = std::move(answers[i]);
    }
    if (unanswered == 0) {
      shared.Answered();
      outcome.status = absl::OkStatus();
    } else if (outcome.status.ok()) {
      outcome.status = BadReply(absl::StrCat(unanswered, " tensors were not answered"));
    }
    return outcome;
  };
  const auto is_known = [](const auto& result) { return result.has_value(); };
  const auto attempt = [&](absl::Time deadline) {
    Outcome outcome;
    do {  // each time with fewer regions
      outcome = once(deadline);
    } while (outcome.status.ok() && !std::all_of(results.begin(), results.end(), is_known));
    return outcome;
  };
  for (const Tensor& tensor : tensors) progress.total_bytes += tensor.bytes.size();
  const absl::Status status = connection.WithRetries(
      connection.NewRetry(options, connection.options().transfer_timeout), attempt);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!refused[i] || !results[i] || !results[i]->ok()) continue;
    connection.shared_memory().OnUnknownRegion();
    break;
  }
  std::vector<absl::StatusOr<T>> all;
  all.reserve(results.size());
  for (auto& result : results) {
    if (result) {
      all.push_back(*std::move(result));
    } else {
      all.push_back(status);
    }
  }
  return all;
}

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_TRANSFER_H_
