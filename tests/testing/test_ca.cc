#include "tests/testing/test_ca.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace ferrite::test {
namespace {

constexpr long kDay = 86400;

std::shared_ptr<evp_pkey_st> NewKey() { return {EVP_EC_gen("P-256"), EVP_PKEY_free}; }

std::string Take(BIO* bio) {
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio, &text);
  std::string taken(text, static_cast<size_t>(size));
  BIO_free_all(bio);
  return taken;
}

std::string Pem(X509* certificate) {
  BIO* const bio = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(bio, certificate);
  return Take(bio);
}

std::string Pem(EVP_PKEY* key) {
  BIO* const bio = BIO_new(BIO_s_mem());
  PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr);
  return Take(bio);
}

void AddExtension(X509* certificate, X509* issuer, int id, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* const extension = X509V3_EXT_conf_nid(nullptr, &context, id, value.c_str());
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

std::shared_ptr<x509_st> NewCertificate(const std::string& name, EVP_PKEY* key, long serial,
                                        int from_days, int to_days) {
  std::shared_ptr<x509_st> certificate(X509_new(), X509_free);
  X509_set_version(certificate.get(), 2);  // counted from 0: v3
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), from_days * kDay);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), to_days * kDay);
  X509_set_pubkey(certificate.get(), key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_UTF8,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  return certificate;
}

}  // namespace

TestCa::TestCa(const std::string& name)
    : key_(NewKey()), certificate_(NewCertificate(name, key_.get(), serial_++, -1000, 1000)) {
  X509_set_issuer_name(certificate_.get(), X509_get_subject_name(certificate_.get()));
  AddExtension(certificate_.get(), certificate_.get(), NID_basic_constraints, "critical,CA:TRUE");
  AddExtension(certificate_.get(), certificate_.get(), NID_key_usage, "critical,keyCertSign");
  X509_sign(certificate_.get(), key_.get(), EVP_sha256());
  pem_ = Pem(certificate_.get());
}

PemPair TestCa::Issue(const std::string& name, bool for_loopback, int from_days, int to_days) {
  const std::shared_ptr<evp_pkey_st> key = NewKey();
  const auto certificate = NewCertificate(name, key.get(), serial_++, from_days, to_days);
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(certificate_.get()));
  AddExtension(certificate.get(), certificate_.get(), NID_subject_alt_name,
               "DNS:" + name + (for_loopback ? ",DNS:localhost,IP:127.0.0.1" : ""));
  X509_sign(certificate.get(), key_.get(), EVP_sha256());
  return {Pem(certificate.get()), Pem(key.get())};
}

void ReplaceFile(const std::string& path, const std::string& text) {
  const std::string fresh = path + ".new";
  std::ofstream(fresh, std::ios::binary) << text;
  if (std::rename(fresh.c_str(), path.c_str()) != 0) std::abort();
}

}  // namespace ferrite::test
