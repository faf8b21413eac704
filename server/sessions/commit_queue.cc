#include "server/sessions/commit_queue.h"

#include <map>
#include <optional>
#include <utility>

#include "server/base/log.h"

namespace nni_compression::server {
namespace {

bool ChangesStateOnly(const SessionChange& change) {
  return !change.create && !change.report && !change.erase;
}

// Both are of one session, and change its state only.
void Merge(SessionChange later, SessionChange& into) {
  if (later.entry) into.entry = std::move(later.entry);
  if (later.global) into.global = std::move(later.global);
  for (auto& [layer, record] : later.layers) into.layers[layer] = std::move(record);
}

}  // namespace

CommitQueue::CommitQueue(Storage* storage, Rollback rollback)
    : storage_(storage), rollback_(std::move(rollback)), thread_([this] { Loop(); }) {}

CommitQueue::~CommitQueue() {
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void CommitQueue::Write(std::shared_ptr<SessionRecord> record, SessionChange change, Done done) {
  Queue({std::move(record), true, std::move(change), std::move(done)});
}

void CommitQueue::WaitForWrites(const std::shared_ptr<SessionRecord>& record, Done done) {
  Queue({record, false, {}, std::move(done)});
}

void CommitQueue::Queue(Item item) {
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    if (item.record != nullptr) status = item.record->save_error_;
    if (status.ok() && (item.writes || item.record->unsaved_ > 0)) {
      if (item.record != nullptr) ++item.record->unsaved_;
      queue_.push_back(std::move(item));
      changed_.NotifyAll();
      return;
    }
  }
  item.done(status);
}

void CommitQueue::ClearError(SessionRecord* record) {
  MutexLock lock(&mutex_);
  record->save_error_ = absl::OkStatus();
}

void CommitQueue::Flush() {
  MutexLock lock(&mutex_);
  while (busy_ || !queue_.empty()) changed_.Wait(&mutex_);
}

void CommitQueue::Loop() {
  bool garbage = true;
  while (true) {
    std::vector<Item> items;
    {
      MutexLock lock(&mutex_);
      busy_ = false;
      changed_.NotifyAll();
      while (queue_.empty() && !stopped_ && !garbage) changed_.Wait(&mutex_);
      if (queue_.empty() && stopped_) return;
      items = std::exchange(queue_, {});
      busy_ = !items.empty();
    }
    if (items.empty()) {
      garbage = storage_->CollectGarbage();
    } else {
      Process(std::move(items));
      garbage = true;
    }
  }
}

void CommitQueue::Process(std::vector<Item> items) {
  std::vector<SessionChange> changes;
  std::vector<std::optional<size_t>> positions(items.size());  // of the items in `changes`
  std::map<SessionKey, size_t> last;                           // change of each session
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].writes) continue;
    SessionChange& change = items[i].change;
    const auto it = last.find(change.key);
    // Many small changes of a layer rewrite its record once.
    if (it != last.end() && ChangesStateOnly(changes[it->second]) && ChangesStateOnly(change)) {
      positions[i] = it->second;
      Merge(std::move(change), changes[it->second]);
      continue;
    }
    positions[i] = last[change.key] = changes.size();
    changes.push_back(std::move(change));
  }
  const std::vector<absl::Status> statuses = storage_->Apply(changes);
  std::vector<absl::Status> outcomes(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    if (positions[i]) outcomes[i] = statuses[*positions[i]];
  }

  std::vector<std::pair<Item, absl::Status>> failed;  // queued after a write that failed
  std::vector<std::pair<std::shared_ptr<SessionRecord>, absl::Status>> lost;
  {
    MutexLock lock(&mutex_);
    for (size_t i = 0; i < items.size(); ++i) {
      SessionRecord* const record = items[i].record.get();
      if (record == nullptr) continue;
      if (!outcomes[i].ok() && record->save_error_.ok()) {
        record->save_error_ = outcomes[i];
        lost.emplace_back(items[i].record, outcomes[i]);
      }
      // Even if it was written: the session is rolled back to the stored state in any case.
      if (outcomes[i].ok()) outcomes[i] = record->save_error_;
    }
    std::vector<Item> kept;
    for (Item& item : queue_) {
      if (item.record == nullptr || item.record->save_error_.ok()) {
        kept.push_back(std::move(item));
        continue;
      }
      const absl::Status error = item.record->save_error_;
      failed.emplace_back(std::move(item), error);
    }
    queue_ = std::move(kept);
  }
  // Roll back before completing the callbacks, so that a caller that retries sees the stored state.
  for (const auto& [record, error] : lost) rollback_(record, error);
  for (size_t i = 0; i < items.size(); ++i) items[i].done(outcomes[i]);
  for (auto& [item, error] : failed) item.done(error);
  // Not before: WaitForWrites answers at once when nothing is unsaved, and would overtake these.
  MutexLock lock(&mutex_);
  for (const Item& item : items) {
    if (item.record != nullptr) --item.record->unsaved_;
  }
  for (const auto& [item, error] : failed) --item.record->unsaved_;
}

}  // namespace nni_compression::server
