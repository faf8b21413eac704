// What is said about files, and which of them count; connections are in
// tests/integration/access/test_tls.py.
#include "server/net/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace nni_compression::server {
namespace {

using ::testing::HasSubstr;

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

std::string TextOf(const Owned<BIO>& bio) {
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return std::string(text, static_cast<size_t>(size));
}

struct Issued {
  std::string certificate;
  std::string key;
};

// A self-signed certificate that expires so many hours from now.
Issued Issue(EVP_PKEY* made, int hours) {
  const Owned<EVP_PKEY> key(made, EVP_PKEY_free);
  const Owned<X509> certificate(X509_new(), X509_free);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -100 * 3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), hours * 3600L);
  X509_set_pubkey(certificate.get(), key.get());
  X509_sign(certificate.get(), key.get(), EVP_sha256());
  const Owned<BIO> certificate_text(BIO_new(BIO_s_mem()), BIO_free_all);
  PEM_write_bio_X509(certificate_text.get(), certificate.get());
  const Owned<BIO> key_text(BIO_new(BIO_s_mem()), BIO_free_all);
  PEM_write_bio_PrivateKey(key_text.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr);
  return {TextOf(certificate_text), TextOf(key_text)};
}

Issued Issue(int hours) { return Issue(EVP_EC_gen("P-256"), hours); }

class TlsTest : public ::testing::Test {
 protected:
  TlsTest() { std::filesystem::create_directory(folder_); }
  ~TlsTest() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& path, const std::string& text) const {
    std::ofstream(path) << text;
  }

  void Write(const Issued& issued) const {
    Write(options_.certificate, issued.certificate);
    Write(options_.key, issued.key);
  }

  // In whole hours.
  int64_t HoursLeft() const {
    return absl::ToInt64Hours(certificates_->expiry() - absl::Now() + absl::Minutes(30));
  }

  int64_t HoursLeftAfterALook() const {
    for (int look = 0; look < 2; ++look) certificates_->Poll();
    return HoursLeft();
  }

  std::string Refusal() const {
    return std::string(TlsCertificates::Open(options_).status().message());
  }

  const std::string folder_ = absl::StrCat(::testing::TempDir(), "/tls", getpid());
  const TlsOptions options_ = {folder_ + "/c", folder_ + "/k", folder_ + "/a"};
  std::unique_ptr<TlsCertificates> certificates_;
};

TEST_F(TlsTest, FilesComeTogetherOrNotAtAll) {
  EXPECT_FALSE(TlsOptions().configured());
  for (const TlsOptions& options :
       {TlsOptions{"c", "", ""}, TlsOptions{"", "k", ""}, TlsOptions{"", "", "a"}}) {
    EXPECT_TRUE(options.configured());
    EXPECT_THAT(std::string(TlsCertificates::Open(options).status().message()),
                HasSubstr("tls_certificate and tls_key must both be set"));
  }
}

TEST_F(TlsTest, WhatIsWrongWithAFileIsSaid) {
  EXPECT_EQ(Refusal(),
            "tls_certificate '" + folder_ + "/c' cannot be read: No such file or directory");
  const Issued one = Issue(10), other = Issue(20);
  Write(one);
  Write(options_.client_ca, other.certificate);
  EXPECT_EQ(Refusal(), "");
  const auto refusal = [&](const std::string& path, const std::string& text) {
    Write(one);
    Write(options_.client_ca, other.certificate);
    Write(path, text);
    return Refusal();
  };
  const std::string two = one.certificate + other.certificate;
  EXPECT_EQ(refusal(options_.certificate, two), "");
  EXPECT_EQ(refusal(options_.client_ca, two), "");
  for (const std::string& text : {std::string(), std::string("nonsense"), std::string(100, '\0'),
                                  one.certificate.substr(0, one.certificate.size() / 2)}) {
    EXPECT_THAT(refusal(options_.certificate, text), HasSubstr("tls_certificate '"));
    EXPECT_THAT(refusal(options_.key, text), HasSubstr("tls_key '"));
    EXPECT_THAT(refusal(options_.client_ca, text), HasSubstr("tls_client_ca '"));
  }
  const std::string half = two.substr(0, two.size() - 100);
  EXPECT_THAT(refusal(options_.certificate, half), HasSubstr("in PEM after number 1"));
  EXPECT_THAT(refusal(options_.client_ca, half), HasSubstr("in PEM after number 1"));
  EXPECT_THAT(refusal(options_.key, other.key), HasSubstr("is not the key of tls_certificate"));
  Write(Issue(EVP_RSA_gen(512), 10));
  EXPECT_THAT(Refusal(), HasSubstr("cannot be used for TLS: ee key too small"));
}

TEST_F(TlsTest, ChangesOfTheFilesCountOnceTheyBelongTogether) {
  const Issued one = Issue(10), other = Issue(20);
  Write(one);
  Write(options_.client_ca, one.certificate);
  certificates_ = *TlsCertificates::Open(options_);
  EXPECT_EQ(HoursLeft(), 10);
  Write(options_.certificate, other.certificate);
  EXPECT_EQ(HoursLeftAfterALook(), 10) << "the key is the old one's";
  Write(options_.key, other.key);
  EXPECT_EQ(HoursLeftAfterALook(), 20);
  for (const std::string& path : {options_.certificate, options_.key, options_.client_ca}) {
    Write(Issue(30));
    Write(path, "");
    EXPECT_EQ(HoursLeftAfterALook(), 20) << path;
  }
  Write(options_.client_ca, one.certificate);
  EXPECT_EQ(HoursLeftAfterALook(), 30);
}

TEST_F(TlsTest, ACertificateThatHasExpiredIsUsed) {
  Write(Issue(-5));
  Write(options_.client_ca, Issue(1).certificate);
  certificates_ = *TlsCertificates::Open(options_);
  EXPECT_EQ(HoursLeft(), -5 + 1) << "counts towards zero";
}

}  // namespace
}  // namespace nni_compression::server
