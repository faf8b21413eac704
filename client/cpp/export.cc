#include "client/cpp/export.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/convert.h"
#include "client/cpp/stream.h"
#include "client/cpp/transfer.h"
#include "client/cpp/upload.h"

namespace nni_compression::internal {
namespace {

constexpr size_t kMaxNameBytes = 255;

}  // namespace

absl::Status CheckFileName(const std::string& name) {
  const bool plain = !name.empty() && name.size() <= kMaxNameBytes && name != "." && name != ".." &&
                     std::none_of(name.begin(), name.end(), [](unsigned char c) {
                       return c == '/' || c == '\\' || absl::ascii_iscntrl(c);
                     });
  return plain ? absl::OkStatus() : BadReply("a file name has a directory or control characters");
}

absl::Status FileReader::Read(const grpc::ByteBuffer& message) {
  wire::MessageReader reader(message);
  while (true) {
    const auto field = reader.Next();
    if (!field.ok()) return BadReply(field.status().message());
    absl::Status status;
    if (*field == 0) {
      return absl::OkStatus();
    } else if (*field == wire::kOpenOrResult) {
      v1::FileHeader header;
      status = reader.Parse(&header);
      if (!status.ok()) return BadReply(status.message());
      status = OnFile(header);
    } else if (*field == wire::kChunk) {
      status = OnChunk(reader);
    } else if (*field == wire::kCommit) {
      v1::Commit commit;
      status = reader.Parse(&commit);
      if (!status.ok()) return BadReply(status.message());
      status = OnCommit(commit);
    } else {
      status = reader.Skip();
      if (!status.ok()) return BadReply(status.message());
    }
    if (!status.ok()) return status;
  }
}

absl::Status FileReader::Finish() const {
  if (files_.empty()) return absl::OkStatus();
  return BadReply(absl::StrCat("file ", files_.begin()->second.name, " is not complete"));
}

absl::Status FileReader::OnFile(const v1::FileHeader& header) {
  absl::Status named = CheckFileName(header.name());
  if (!named.ok()) return named;
  if (header.byte_length() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return BadReply(absl::StrCat("a file of ", header.byte_length(), " bytes"));
  }
  const auto byte_length = static_cast<int64_t>(header.byte_length());
  if (!names_.insert(header.name()).second ||
      !files_
           .emplace(header.index(), File{header.name(), byte_length, ToVector(header.warnings()),
                                         Arrival(byte_length)})
           .second) {
    return BadReply(absl::StrCat("file ", header.name(), " has a duplicate header"));
  }
  return absl::OkStatus();
}

absl::StatusOr<FileReader::File*> FileReader::Begun(uint32_t index) {
  const auto found = files_.find(index);
  if (found == files_.end()) return BadReply(absl::StrCat("a chunk of file ", index));
  if (!open_) {
    open_ = index;
    for (const std::string& warning : found->second.warnings) sink_.Warn(warning);
    absl::Status begun = sink_.Begin(found->second.name, found->second.byte_length);
    if (!begun.ok()) return begun;
  }
  if (*open_ != index) return BadReply("chunks of two files are interleaved");
  return &found->second;
}

absl::Status FileReader::OnChunk(wire::MessageReader& reader) {
  const auto chunk = reader.BeginChunk();
  if (!chunk.ok()) return BadReply(chunk.status().message());
  const auto file = Begun(chunk->index);
  if (!file.ok()) return file.status();
  absl::Status status = (*file)->arrival.CheckChunk(*chunk);
  if (!status.ok()) return status;
  scratch_.resize(chunk->payload_bytes);
  status = reader.ReadPayload(absl::MakeSpan(scratch_));
  if (!status.ok()) return BadReply(status.message());
  (*file)->arrival.Advance(scratch_);
  return sink_.Write(scratch_);
}

absl::Status FileReader::OnCommit(const v1::Commit& commit) {
  const auto file = Begun(commit.index());
  if (!file.ok()) return file.status();
  absl::Status status = (*file)->arrival.CheckCommit(commit);
  if (!status.ok()) return status;
  files_.erase(commit.index());
  open_.reset();
  ++complete_;
  return sink_.End();
}

absl::Status RunExport(const Connection& connection, const Route& route,
                       const v1::ExportRequest& open, absl::Span<const Tensor> tensors,
                       FileSink& sink, const CallOptions& options) {
  std::vector<const Tensor*> sent;
  for (const Tensor& tensor : tensors) {
    // Tensors that are only copied to the file may be scalars.
    Tensor checked = tensor;
    if (checked.shape.empty()) checked.shape = {1};
    if (absl::Status status = CheckTensor(checked); !status.ok()) return status;
    sent.push_back(&tensor);
  }
  Progress progress;
  progress.total_bytes = TotalBytes(sent);
  bool first = true;
  const auto attempt = [&](absl::Time deadline) {
    if (!std::exchange(first, false)) {
      if (absl::Status restarted = sink.Restart(); !restarted.ok()) return Outcome{restarted};
    }
    Loans loans;
    Upload::Options upload_options;
    upload_options.checksum = connection.options().checksum;
    upload_options.headers_first = true;
    upload_options.on_message = [&](int64_t sent_bytes) {
      progress.sent_bytes = sent_bytes;
      if (options.progress) options.progress(progress);
    };
    Upload upload(open, sent, upload_options, loans);
    FileReader reader(sink);
    Outcome outcome = RunStream(connection, {"Export", route, deadline}, upload, loans,
                                [&](const grpc::ByteBuffer& message) {
                                  absl::Status status = reader.Read(message);
                                  progress.answered = reader.files();
                                  if (options.progress) options.progress(progress);
                                  return status;
                                });
    if (outcome.status.ok()) outcome.status = reader.Finish();
    return outcome;
  };
  return connection.WithRetries(connection.NewRetry(options, connection.options().transfer_timeout),
                                attempt);
}

}  // namespace nni_compression::internal
