// What is left of changes when the machine loses its power.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "server/access/tenant_editor.h"
#include "tests/testing/faulty_disk.h"

namespace nni_compression::access {
namespace {

TEST(TenantEditorFaultsTest, ATokenThatWasRevokedDoesNotComeBack) {
  std::string pattern =
      std::filesystem::canonical(::testing::TempDir()).string() + "/tenantsXXXXXX";
  const std::string folder = mkdtemp(pattern.data());
  {
    const testing::FaultyDisk disk(folder + "/access");
    std::filesystem::create_directory(folder + "/access");
    const TenantEditor editor(folder + "/access/tenants");
    ASSERT_TRUE(editor.Add("a", false).ok());
    auto after_power_failure = [&, copies = 0]() mutable {
      const std::string copy = folder + "/copy" + std::to_string(++copies);
      disk.CopySynced(copy);
      return TenantEditor(copy + "/tenants").Read();
    };
    EXPECT_EQ(after_power_failure()->tokens.size(), 1u);
    ASSERT_TRUE(editor.Add("a", false).ok());
    EXPECT_EQ(after_power_failure()->tokens.size(), 2u);
    ASSERT_TRUE(editor.Revoke("a", "").ok());
    EXPECT_EQ(after_power_failure()->tokens.size(), 0u);
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace nni_compression::access
