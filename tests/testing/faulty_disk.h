// A disk on which any operation can fail, and that knows what a power failure would leave.
#ifndef NNI_COMPRESSION_TESTS_TESTING_FAULTY_DISK_H_
#define NNI_COMPRESSION_TESTS_TESTING_FAULTY_DISK_H_

#include <cerrno>
#include <memory>
#include <string>

namespace nni_compression::testing {

// Stands between this program, SQLite included, and the files of one directory: faulty_disk.cc
// defines open, write, fsync, rename and their like, which take the place of the C library's in
// every program that it is linked into. There is one at a time; whoever uses the directory goes
// first. Thread-safe.
//
// A write that fails has written half of its bytes. A sync that fails has lost what it was to
// write, as Linux does: the next one, which succeeds, does not write it either.
class FaultyDisk {
 public:
  struct Fault {
    // EIO befalls everything, reading included; ENOSPC what may take room; EROFS what changes
    // anything.
    int error = EIO;
    int at = 1;            // the first of these operations that fails, counted from Arm on
    bool lasting = false;  // and all after it
  };

  // The directory need not be there yet; its path is absolute and has no links.
  explicit FaultyDisk(const std::string& directory);
  ~FaultyDisk();

  void Arm(const Fault& fault);
  void Heal();

  // Operations that failed since Arm.
  int failures() const;

  // From now on, all that is there counts as synced.
  void SyncAll();

  // Makes a directory with what was synced: all that a power failure would leave for certain.
  void CopySynced(const std::string& to) const;

  class State;

 private:
  const std::unique_ptr<State> state_;
};

// Makes a folder for such a directory: in memory where there is room, since thousands of syncs
// would wait for a real disk, and the faults are injected above the file system.
std::string MakeFaultyDiskFolder();

}  // namespace nni_compression::testing

#endif  // NNI_COMPRESSION_TESTS_TESTING_FAULTY_DISK_H_
