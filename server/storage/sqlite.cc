#include "server/storage/sqlite.h"

#include "absl/strings/str_cat.h"

namespace nni_compression::server {
namespace {

// Another process, such as a backup, may hold a lock briefly.
constexpr int kBusyTimeoutMs = 10000;

constexpr char kCatalogue[] = "the catalogue";

absl::Status ToStatus(sqlite3* db, absl::string_view what) {
  const int code = db == nullptr ? SQLITE_NOMEM : sqlite3_extended_errcode(db);
  const std::string message =
      absl::StrCat(what, ": ", db == nullptr ? "out of memory" : sqlite3_errmsg(db));
  switch (code & 0xff) {
    case SQLITE_FULL:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_BUSY:
    case SQLITE_NOMEM:
      return absl::ResourceExhaustedError(message);
    case SQLITE_IOERR:
      return code == SQLITE_IOERR_READ || code == SQLITE_IOERR_SHORT_READ ||
                     code == SQLITE_IOERR_CORRUPTFS
                 ? absl::DataLossError(message)
                 : absl::ResourceExhaustedError(message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace

absl::StatusOr<Database> Database::Open(const std::string& path) {
  sqlite3* db = nullptr;
  // Without SQLite's mutexes: every connection is used by one thread at a time.
  const int result = sqlite3_open_v2(
      path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  Database database(db);
  if (result != SQLITE_OK) return ToStatus(db, absl::StrCat("cannot open '", path, "'"));
  // SQLite opens a file that is not writable read-only, for the connection's lifetime.
  if (sqlite3_db_readonly(db, "main") != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot open '", path, "' for writing"));
  }
  sqlite3_extended_result_codes(db, 1);
  sqlite3_busy_timeout(db, kBusyTimeoutMs);
  return database;
}

absl::Status Database::Execute(const std::string& sql) {
  if (sqlite3_exec(get(), sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK) {
    return absl::OkStatus();
  }
  return ToStatus(get(), kCatalogue);
}

absl::StatusOr<int64_t> Database::Number(const std::string& sql) {
  Statement statement(*this, sql);
  const absl::StatusOr<bool> row = statement.Next();
  if (!row.ok()) return row.status();
  return *row ? statement.Integer(0) : 0;
}

Statement::Statement(const Database& database, absl::string_view sql)
    : database_(database.get()), sql_(sql) {
  Compile();
}

bool Statement::Compile() {
  if (statement_ != nullptr) return true;
  sqlite3_stmt* statement = nullptr;
  sqlite3_prepare_v3(database_, sql_.data(), static_cast<int>(sql_.size()),
                     SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  statement_.reset(statement);
  return statement_ != nullptr;
}

absl::StatusOr<bool> Statement::Next() {
  if (statement_ == nullptr) return ToStatus(database_, kCatalogue);
  const int result = sqlite3_step(statement_.get());
  if (result == SQLITE_ROW) return true;
  if (result == SQLITE_DONE) {
    Reset();
    return false;
  }
  const absl::Status error = ToStatus(database_, kCatalogue);
  Reset();
  return error;
}

absl::Status Statement::Run() { return Next().status(); }

std::string Statement::Bytes(int column) const {
  const void* const bytes = sqlite3_column_blob(statement_.get(), column);
  const int size = sqlite3_column_bytes(statement_.get(), column);
  return bytes == nullptr ? "" : std::string(static_cast<const char*>(bytes), size);
}

void Statement::Bind(int index, absl::string_view bytes) {
  // A null pointer would bind NULL.
  sqlite3_bind_blob64(statement_.get(), index, bytes.empty() ? "" : bytes.data(), bytes.size(),
                      SQLITE_STATIC);
}

}  // namespace nni_compression::server
