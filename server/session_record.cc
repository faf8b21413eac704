#include "server/session_record.h"

#include <utility>

namespace nni_compression::server {

SessionRecord::SessionRecord(std::string tenant, std::map<std::string, std::string> labels,
                             std::shared_ptr<Strand> strand,
                             std::unique_ptr<compression::Session> session,
                             Reservation state_memory, int64_t binding_bytes)
    : tenant_(std::move(tenant)),
      labels_(std::move(labels)),
      strand_(std::move(strand)),
      session_(std::move(session)),
      state_memory_(std::move(state_memory)),
      binding_bytes_(binding_bytes) {
  if (session_ == nullptr) return;
  layers_ = session_->binding().layers;
  for (size_t i = 0; i < layers_.size(); ++i) {
    index_.emplace(layers_[i].name, static_cast<int>(i));
    for (const std::string& alias : layers_[i].aliases) index_.emplace(alias, static_cast<int>(i));
  }
  algorithm_ = session_->algorithm().name;
  kind_ = session_->algorithm().kind;
  framework_ = session_->binding().framework;
  traits_.resize(layers_.size());
  for (size_t i = 0; i < layers_.size(); ++i) {
    const compression::PlannedRule* planned = session_->plan().layers[i].planned;
    if (planned == nullptr) continue;
    ++compressed_layers_;
    traits_[i].compressed = true;
    const auto* quantizer = dynamic_cast<const compression::Quantizer*>(planned->compressor.get());
    if (quantizer != nullptr) traits_[i].channel_axis = quantizer->channel_axis(layers_[i]);
  }
}

std::vector<int64_t> SessionRecord::RangeShape(int i) const {
  if (!traits_[i].channel_axis) return {2};
  return {2, layers_[i].shape[*traits_[i].channel_axis]};
}

void SessionRecord::Retire(nni::compression::v1::Session report) {
  report_ = std::make_unique<nni::compression::v1::Session>(std::move(report));
  session_.reset();
  state_memory_.ShrinkTo(0);
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

SessionRecord::Summary SessionRecord::summary() const {
  MutexLock lock(&mutex_);
  return summary_;
}

}  // namespace nni_compression::server
