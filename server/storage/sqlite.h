// A thin wrapper of SQLite.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_SQLITE_H_
#define NNI_COMPRESSION_SERVER_STORAGE_SQLITE_H_

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nni_compression::server {

// A connection. Thread-compatible. Errors are RESOURCE_EXHAUSTED if the file cannot be written,
// DATA_LOSS if it is damaged, INTERNAL otherwise.
class Database {
 public:
  // Opens or creates the file, for writing.
  static absl::StatusOr<Database> Open(const std::string& path);

  // Statements without parameters and results.
  absl::Status Execute(const std::string& sql);

  // The number in the first column of the first row; 0 without rows.
  absl::StatusOr<int64_t> Number(const std::string& sql);

  int changes() const { return sqlite3_changes(db_.get()); }
  int64_t last_insert_rowid() const { return sqlite3_last_insert_rowid(db_.get()); }
  sqlite3* get() const { return db_.get(); }

 private:
  struct Closer {
    void operator()(sqlite3* db) const { sqlite3_close_v2(db); }
  };
  explicit Database(sqlite3* db) : db_(db) {}

  std::unique_ptr<sqlite3, Closer> db_;
};

// A reusable prepared statement. Thread-compatible, together with its database.
class Statement {
 public:
  // `sql` is a constant of the program and valid, but compiling it reads the schema, which may
  // fail. Running the statement then fails, until compiling succeeds. `database` may be moved; the
  // connection stays the same.
  Statement(const Database& database, absl::string_view sql);

  // Resets the statement and binds the parameters in order. Bytes must outlive the run.
  template <typename... Values>
  Statement& With(const Values&... values) {
    if (!Compile()) return *this;
    sqlite3_reset(statement_.get());
    sqlite3_clear_bindings(statement_.get());
    int index = 0;
    (Bind(++index, values), ...);
    return *this;
  }

  // Runs to the next row; returns whether there is one.
  absl::StatusOr<bool> Next();

  // Runs a statement without result rows.
  absl::Status Run();

  // Ends the run, and with it its read transaction.
  void Reset() { sqlite3_reset(statement_.get()); }

  int64_t Integer(int column) const { return sqlite3_column_int64(statement_.get(), column); }
  std::string Bytes(int column) const;
  // nullopt for NULL.
  std::optional<std::string> OptionalBytes(int column) const {
    return IsNull(column) ? std::nullopt : std::optional(Bytes(column));
  }
  bool IsNull(int column) const {
    return sqlite3_column_type(statement_.get(), column) == SQLITE_NULL;
  }

 private:
  struct Finalizer {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
  };

  // Compiles the statement if it is not compiled yet; returns whether it is.
  bool Compile();

  void Bind(int index, int64_t value) { sqlite3_bind_int64(statement_.get(), index, value); }
  void Bind(int index, int value) { sqlite3_bind_int64(statement_.get(), index, value); }
  void Bind(int index, absl::string_view bytes);
  void Bind(int index, const std::string& bytes) { Bind(index, absl::string_view(bytes)); }
  template <typename Value>
  void Bind(int index, const std::optional<Value>& value) {
    if (value) Bind(index, *value);
  }

  sqlite3* const database_;
  const std::string sql_;
  std::unique_ptr<sqlite3_stmt, Finalizer> statement_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_SQLITE_H_
