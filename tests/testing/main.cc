// The main program of tests: gtest's, with a bound on every test.
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

// As tests/run.sh says.
unsigned TestSeconds() { return std::getenv("NNI_COMPRESSION_LONG") == nullptr ? 300 : 24 * 300; }

// Ends the program when a test hangs, and says which.
class Watchdog : public ::testing::EmptyTestEventListener {
 public:
  Watchdog() { std::signal(SIGALRM, End); }

  void OnTestStart(const ::testing::TestInfo& test) override {
    std::snprintf(message_, sizeof message_, "%s.%s did not end in %u s\n", test.test_suite_name(),
                  test.name(), TestSeconds());
    alarm(TestSeconds());
  }
  void OnTestEnd(const ::testing::TestInfo&) override { alarm(0); }

 private:
  static void End(int) {
    (void)!write(STDERR_FILENO, message_, std::strlen(message_));
    std::abort();
  }

  static inline char message_[512] = "";
};

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  ::testing::UnitTest::GetInstance()->listeners().Append(new Watchdog);
  return RUN_ALL_TESTS();
}
