// The server's record of a session.
#ifndef NNI_COMPRESSION_SERVER_SESSIONS_SESSION_RECORD_H_
#define NNI_COMPRESSION_SERVER_SESSIONS_SESSION_RECORD_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "compression/session/session.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/base/mutex.h"
#include "server/base/strand.h"
#include "server/sessions/session_memory.h"

namespace nni_compression::server {

// How many results a session may have.
constexpr size_t kMaxResults = 64;

enum class SessionState { kActive = 1, kClosed = 2, kExpired = 3 };

// One session of one tenant. The compression session in it is used on the strand only; all other
// members may be used on any thread.
class SessionRecord {
 public:
  // What the catalogue shows, readable without the strand.
  struct Summary {
    int64_t epoch = 0;
    int64_t step = 0;
    int64_t state_bytes = 0;
    int64_t statistic_sources = 0;  // of all statistics
    std::optional<double> achieved_sparsity;

    friend bool operator==(const Summary& a, const Summary& b) {
      return std::tie(a.epoch, a.step, a.state_bytes, a.statistic_sources, a.achieved_sparsity) ==
             std::tie(b.epoch, b.step, b.state_bytes, b.statistic_sources, b.achieved_sparsity);
    }
  };

  SessionRecord(std::string tenant, std::map<std::string, std::string> labels,
                std::shared_ptr<Strand> strand, std::unique_ptr<compression::Session> session,
                SessionMemory memory, int64_t binding_bytes, int64_t disk_bytes = 0);

  // A stored session of which only the catalogue entry is in memory. `memory` is the reservation of
  // that entry.
  SessionRecord(std::string tenant, const nni::compression::v1::Session& entry,
                std::shared_ptr<Strand> strand, SessionMemory memory);

  const std::string& tenant() const { return tenant_; }
  const std::string& id() const { return id_; }
  const std::map<std::string, std::string>& labels() const { return labels_; }
  SessionState state() const { return state_.load(std::memory_order_acquire); }

  // All calls of the session are applied on it.
  Strand& strand() const { return *strand_; }

  // On the strand only: null when the session has ended.
  compression::Session* session() const { return session_.get(); }

  // Whether the session, or its report once it has ended, is in memory. The layers below are
  // unknown until it has been loaded once.
  bool loaded() const { return loaded_.load(std::memory_order_acquire); }

  // On the strand only, once for a new session: from now on, the state of its algorithm is reserved
  // as it grows. RESOURCE_EXHAUSTED when there is no memory for its present state.
  absl::Status CountGrowth();

  // On the strand only. `memory` is what is reserved so far, of which `binding_bytes` are for the
  // binding. RESOURCE_EXHAUSTED, with nothing loaded, when there is none for the state of its
  // algorithm.
  absl::Status Load(std::unique_ptr<compression::Session> session, SessionMemory memory,
                    int64_t binding_bytes);
  void Unload(const absl::Status& why);

  // From now on, calls load the session before they use it. Any thread, before Unload.
  void Invalidate() { loaded_.store(false, std::memory_order_release); }

  // On the strand only, when the end is being stored with the last report: calls that come later
  // would change what the report shows, and find that the session has ended. Unload, after the end
  // could not be stored, makes it live again.
  void BeginEnd() { ending_ = true; }
  bool ending() const { return ending_; }

  // On the strand only, once the session has ended: frees what only a live session needs.
  void Retire();

  // The last report of an ended session, and its reservation if it was read from storage. On the
  // strand only.
  void KeepReport(nni::compression::v1::Session report, SessionMemory memory = {});

  // On the strand only: the last report, or null before Retire.
  const nni::compression::v1::Session* report() const { return report_.get(); }

  // The layer's index, without the strand. Cheap for unknown names, too.
  std::optional<int> FindLayer(absl::string_view name) const;

  // The layer as bound.
  const compression::Layer& layer(int i) const { return layers_[i]; }
  const std::vector<compression::Layer>& layers() const { return layers_; }

  bool compressed(int i) const { return traits_[i].compressed; }

  // Whether the layer is decided about together with others.
  bool joint(int i) const { return traits_[i].joint; }

  // Memory that computing the layer's answer takes beyond weight and answer.
  int64_t work_bytes(int i) const { return traits_[i].work_bytes; }

  // The shape of the layer's RANGE tensor: [2], or [2, channels] or [2, groups].
  std::vector<int64_t> RangeShape(int i) const;

  // Properties of the binding, which do not change.
  const std::string& algorithm() const { return algorithm_; }
  compression::AlgorithmKind kind() const { return kind_; }
  const std::string& framework() const { return framework_; }
  int compressed_layers() const { return compressed_layers_; }
  int layer_count() const { return layer_count_; }

  // Memory of the record itself, mainly its layers.
  int64_t binding_bytes() const { return binding_bytes_.load(std::memory_order_relaxed); }

  // Memory of the record with its last report.
  int64_t report_bytes() const;

  // Estimated storage of the session once all of its layers have been answered; 0: it is not
  // stored.
  int64_t disk_bytes() const { return disk_bytes_; }

  void SetSummary(const Summary& summary);
  Summary summary() const;

  // The summary in the stored catalogue entry. On the strand only.
  Summary stored_summary;

  // Adds results, or replaces those of the same names. On the strand only. INVALID_ARGUMENT when
  // the session would have too many, RESOURCE_EXHAUSTED when there is no memory for them; then none
  // has changed.
  absl::Status AddResults(const Results& results);

  // Those of the stored catalogue entry replace all others. On the strand only.
  void RestoreResults(Results results);
  Results results() const;

  // Whether the stored catalogue entry has the results. On the strand only.
  bool results_stored = true;

  // How often the stored state has changed. A change is stored before the caller learns its
  // revision, so a record that is older than its caller's comes from a data directory that has lost
  // data. Stays 0 without one.
  std::atomic<uint64_t> revision{0};

  // Counters over all calls.
  std::atomic<int64_t> received_bytes{0};
  std::atomic<int64_t> sent_bytes{0};
  std::atomic<int64_t> compute_nanoseconds{0};

 private:
  friend absl::Status NoSession(const SessionRecord& record);
  friend class SessionStore;  // its mutex guards members below
  friend class CommitQueue;   // its mutex guards members below

  void SetLayers();

  const std::string tenant_;
  std::string id_;  // set by the store before the record is shared
  const std::map<std::string, std::string> labels_;
  const std::shared_ptr<Strand> strand_;
  std::unique_ptr<compression::Session> session_;
  std::unique_ptr<nni::compression::v1::Session> report_;
  SessionMemory memory_;
  SessionMemory report_memory_;
  absl::Status unloaded_;  // the error of the last Unload; on the strand only
  bool ending_ = false;
  std::atomic<int64_t> binding_bytes_;
  const int64_t disk_bytes_;

  struct LayerTraits {
    bool compressed = false;
    bool joint = false;
    int64_t work_bytes = 0;
    std::optional<int64_t> ranges;  // number of channels or groups; unset: one range per tensor
  };

  // Copies, since calls may still check headers after the session is destroyed.
  std::vector<compression::Layer> layers_;
  std::vector<LayerTraits> traits_;
  absl::flat_hash_map<std::string, int> index_;
  std::string algorithm_;
  compression::AlgorithmKind kind_ = compression::AlgorithmKind::kPruner;
  std::string framework_;
  int compressed_layers_ = 0;
  int layer_count_ = 0;
  std::atomic<bool> loaded_{true};

  std::atomic<SessionState> state_{SessionState::kActive};
  mutable Mutex mutex_;
  Summary summary_ ABSL_GUARDED_BY(mutex_);
  Results results_ ABSL_GUARDED_BY(mutex_);

  // Guarded by the store's mutex.
  uint64_t sequence_ = 0;
  std::string request_key_;  // key in the idempotency table; empty: none
  int uses_ = 0;
  absl::Duration lease_;
  absl::Time create_time_;
  absl::Time last_call_;
  int64_t report_bytes_ = 0;  // counted while the report is kept
  absl::Time deadline_;       // of the lease while unused; of the report once ended

  // Guarded by the queue's mutex.
  int unsaved_ = 0;          // changes that are queued or not answered yet
  absl::Status save_error_;  // of the failed write, until the rollback is done
};

// Why a call cannot have a record's session. On its strand. NOT_FOUND if it has ended; the error of
// its last Unload if it was rolled back to the stored state, in which case a new call loads it
// again.
absl::Status NoSession(const SessionRecord& record);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SESSIONS_SESSION_RECORD_H_
