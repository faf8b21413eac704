#include "server/storage/memory_storage.h"

#include <algorithm>
#include <utility>

namespace nni_compression::server {

std::vector<absl::Status> MemoryStorage::Apply(absl::Span<const SessionChange> changes) {
  MutexLock lock(&mutex_);
  std::vector<absl::Status> statuses;
  statuses.reserve(changes.size());
  for (const SessionChange& change : changes) statuses.push_back(ApplyOne(change));
  return statuses;
}

absl::Status MemoryStorage::ApplyOne(const SessionChange& change) {
  if (change.erase) {
    sessions_.erase(change.key);
    return absl::OkStatus();
  }
  auto it = sessions_.find(change.key);
  if (change.create) {
    if (it != sessions_.end()) return AlreadyStored(change.key);
    it = sessions_.emplace(change.key, Session{change.create->row, {}, ""}).first;
    it->second.row.key = change.key;
    it->second.state.binding = change.create->binding;
  }
  if (it == sessions_.end() || it->second.row.ended) return NotStored(change.key);
  Session& session = it->second;
  if (change.entry) session.row.entry = *change.entry;
  if (change.global) session.state.global = *change.global;
  for (const auto& [layer, record] : change.layers) session.state.layers[layer] = record();
  if (change.report) {
    session.row.ended = true;
    session.row.request_id.clear();
    session.report = *change.report;
    session.state = {};
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<CatalogueRow>> MemoryStorage::List() {
  MutexLock lock(&mutex_);
  std::vector<CatalogueRow> rows;
  rows.reserve(sessions_.size());
  for (const auto& [key, session] : sessions_) rows.push_back(session.row);
  std::sort(rows.begin(), rows.end(),
            [](const auto& a, const auto& b) { return a.sequence < b.sequence; });
  return rows;
}

absl::StatusOr<StoredSession> MemoryStorage::Load(const SessionKey& key) {
  MutexLock lock(&mutex_);
  const auto it = sessions_.find(key);
  if (it == sessions_.end() || it->second.row.ended) return NotStored(key);
  StoredSession session = it->second.state;
  session.entry = it->second.row.entry;
  return session;
}

absl::StatusOr<std::string> MemoryStorage::LoadReport(const SessionKey& key) {
  MutexLock lock(&mutex_);
  const auto it = sessions_.find(key);
  if (it == sessions_.end() || !it->second.row.ended) return NotStored(key);
  return it->second.report;
}

}  // namespace nni_compression::server
