#include "server/sessions/session_record.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace nni_compression::server {

SessionRecord::SessionRecord(std::string tenant, std::map<std::string, std::string> labels,
                             std::shared_ptr<Strand> strand,
                             std::unique_ptr<compression::Session> session, SessionMemory memory,
                             int64_t binding_bytes, int64_t disk_bytes)
    : tenant_(std::move(tenant)),
      labels_(std::move(labels)),
      strand_(std::move(strand)),
      session_(std::move(session)),
      memory_(std::move(memory)),
      binding_bytes_(binding_bytes),
      disk_bytes_(disk_bytes) {
  if (session_ == nullptr) return;
  algorithm_ = session_->algorithm().name;
  framework_ = session_->binding().framework;
  layer_count_ = static_cast<int>(session_->binding().layers.size());
  for (const compression::LayerPlan& layer : session_->plan().layers) {
    if (layer.planned != nullptr) ++compressed_layers_;
  }
  SetLayers();
}

SessionRecord::SessionRecord(std::string tenant, const nni::compression::v1::Session& entry,
                             std::shared_ptr<Strand> strand, SessionMemory memory)
    : tenant_(std::move(tenant)),
      id_(entry.id()),
      labels_(entry.labels().begin(), entry.labels().end()),
      strand_(std::move(strand)),
      memory_(std::move(memory)),
      binding_bytes_(EntryBytes(entry)),
      disk_bytes_(static_cast<int64_t>(entry.disk_bytes())),
      algorithm_(entry.algorithm()),
      framework_(entry.framework()),
      compressed_layers_(static_cast<int>(entry.compressed_layer_count())),
      layer_count_(static_cast<int>(entry.layer_count())),
      loaded_(false),
      results_(entry.results().begin(), entry.results().end()) {
  revision = entry.revision();
  received_bytes = static_cast<int64_t>(entry.received_bytes());
  sent_bytes = static_cast<int64_t>(entry.sent_bytes());
  compute_nanoseconds = entry.compute_time().seconds() * 1000000000 + entry.compute_time().nanos();
  summary_.epoch = entry.epoch();
  summary_.step = entry.step();
  summary_.state_bytes = static_cast<int64_t>(entry.state_bytes());
  if (entry.has_achieved_sparsity()) summary_.achieved_sparsity = entry.achieved_sparsity();
}

absl::Status SessionRecord::CountGrowth() {
  return session_->CountMemory([this](int64_t bytes) {
    return memory_.Grow(bytes, "the state of the session's algorithm");
  });
}

absl::Status SessionRecord::Load(std::unique_ptr<compression::Session> session,
                                 SessionMemory memory, int64_t binding_bytes) {
  session_ = std::move(session);
  memory_ = std::move(memory);
  if (absl::Status status = CountGrowth(); !status.ok()) {
    session_.reset();
    memory_ = {};
    return status;
  }
  binding_bytes_.store(binding_bytes, std::memory_order_relaxed);
  // Only once, since other threads read them. They do not change when a session is unloaded and
  // loaded again.
  if (layers_.empty()) SetLayers();
  loaded_.store(true, std::memory_order_release);
  return absl::OkStatus();
}

void SessionRecord::Unload(const absl::Status& why) {
  if (report_ != nullptr) return;
  unloaded_ = why;
  ending_ = false;
  Invalidate();
  session_.reset();
  memory_.Retire(binding_bytes());
}

void SessionRecord::SetLayers() {
  layers_ = session_->binding().layers;
  for (size_t i = 0; i < layers_.size(); ++i) {
    index_.emplace(layers_[i].name, static_cast<int>(i));
    for (const std::string& alias : layers_[i].aliases) index_.emplace(alias, static_cast<int>(i));
  }
  kind_ = session_->algorithm().kind;
  traits_.resize(layers_.size());
  for (size_t i = 0; i < layers_.size(); ++i) {
    const compression::PlannedRule* planned = session_->plan().layers[i].planned;
    if (planned == nullptr) continue;
    traits_[i].compressed = true;
    traits_[i].joint = planned->joint;
    traits_[i].work_bytes = planned->compressor->work_bytes(layers_[i]);
    const auto* quantizer = dynamic_cast<const compression::Quantizer*>(planned->compressor.get());
    if (quantizer != nullptr && planned->traits().per_channel) {
      traits_[i].ranges = quantizer->channels(layers_[i]);
    }
  }
}

std::vector<int64_t> SessionRecord::RangeShape(int i) const {
  if (!traits_[i].ranges) return {2};
  return {2, *traits_[i].ranges};
}

void SessionRecord::Retire() {
  session_.reset();
  memory_.Retire(report_bytes());
}

int64_t SessionRecord::report_bytes() const {
  // A message with a digest, and its place in the list.
  constexpr int64_t kSourceBytes = 160;
  return binding_bytes() + kSourceBytes * summary().statistic_sources;
}

void SessionRecord::KeepReport(nni::compression::v1::Session report, SessionMemory memory) {
  report_ = std::make_unique<nni::compression::v1::Session>(std::move(report));
  report_memory_ = std::move(memory);
  loaded_.store(true, std::memory_order_release);
}

std::optional<int> SessionRecord::FindLayer(absl::string_view name) const {
  const auto it = index_.find(name);
  if (it == index_.end()) return std::nullopt;
  return it->second;
}

void SessionRecord::SetSummary(const Summary& summary) {
  MutexLock lock(&mutex_);
  summary_ = summary;
}

absl::Status SessionRecord::AddResults(const Results& results) {
  const Results present = this->results();
  Results all = present;
  for (const auto& [name, value] : results) {
    all[name] = value;
    if (all.size() > kMaxResults) break;
  }
  if (all.size() > kMaxResults) {
    return absl::InvalidArgumentError(
        absl::StrCat("results would have more than ", kMaxResults,
                     " names in this session, which may have at most ", kMaxResults));
  }
  if (all == present) return absl::OkStatus();  // such as a retry
  const int64_t more = ResultsBytes(all) - ResultsBytes(present);
  if (absl::Status s = memory_.Grow(more, "the session's results"); !s.ok()) return s;
  binding_bytes_.fetch_add(more, std::memory_order_relaxed);
  results_stored = false;
  MutexLock lock(&mutex_);
  results_ = std::move(all);
  return absl::OkStatus();
}

void SessionRecord::RestoreResults(Results results) {
  results_stored = true;
  MutexLock lock(&mutex_);
  results_ = std::move(results);
}

Results SessionRecord::results() const {
  MutexLock lock(&mutex_);
  return results_;
}

absl::Status NoSession(const SessionRecord& record) {
  const bool live = record.state() == SessionState::kActive && !record.ending_;
  if (live && !record.unloaded_.ok()) return record.unloaded_;
  return absl::NotFoundError(absl::StrCat("session '", record.id(), "' has ended"));
}

SessionRecord::Summary SessionRecord::summary() const {
  MutexLock lock(&mutex_);
  return summary_;
}

}  // namespace nni_compression::server
