#include "client/cli/command_line/flags.h"

#include <cstdint>
#include <functional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace nni_compression::cli {
namespace {

// How CLI11 shows the values of IsMember after the name of a type.
constexpr char kBeforeChoices[] = ":{";

constexpr char kLabel[] = "--label";
constexpr char kOption[] = "--option";

[[noreturn]] void Refuse(const std::string& name, const std::string& value, const char* allowed) {
  throw CLI::ConversionError(absl::StrCat(name, " is ", value, "; it must be ", allowed));
}

// Before and after the first "="; `flag` has the text, of the form `allowed`.
std::pair<std::string, std::string> SplitPair(const char* flag, absl::string_view text,
                                              const char* allowed) {
  std::pair<std::string, std::string> pair = absl::StrSplit(text, absl::MaxSplits('=', 1));
  if (pair.first.empty() || !absl::StrContains(text, '=')) {
    Refuse(flag, std::string(text), allowed);
  }
  return pair;
}

CLI::Option* AddParsed(CLI::App& app, const std::string& name, const std::string& type,
                       const std::string& description,
                       const std::function<void(const std::string&)>& parse) {
  return app.add_option_function<std::string>(name, parse, description)
      ->type_name(type)
      ->take_last();
}

}  // namespace

CLI::Option* AddText(CLI::App& app, const std::string& name, const std::string& type,
                     std::string* value, const std::string& description) {
  return AddParsed(app, name, type, description,
                   [value](const std::string& text) { *value = text; });
}

CLI::Option* AddText(CLI::App& app, const std::string& name, const std::string& type,
                     std::optional<std::string>* value, const std::string& description) {
  return AddParsed(app, name, type, description,
                   [value](const std::string& text) { *value = text; });
}

CLI::Option* AddChoice(CLI::App& app, const std::string& name, const std::string& type,
                       std::string* value, const std::vector<Choice>& choices,
                       const std::string& description) {
  std::string text = description;
  std::vector<std::string> values;
  values.reserve(choices.size());
  for (const Choice& choice : choices) {
    values.push_back(choice.value);
    if (!choice.meaning.empty()) absl::StrAppend(&text, "\n", choice.value, ": ", choice.meaning);
  }
  return AddText(app, name, type, value, text)->default_str(*value)->check(CLI::IsMember(values));
}

CLI::Option* AddNumber(CLI::App& app, const std::string& name, std::optional<int64_t>* value,
                       const std::string& description) {
  return AddParsed(app, name, "N", description, [name, value](const std::string& text) {
    int64_t number = 0;
    if (!absl::SimpleAtoi(text, &number)) Refuse(name, text, "a whole number");
    *value = number;
  });
}

CLI::Option* AddDuration(CLI::App& app, const std::string& name, absl::Duration* value,
                         const std::string& description) {
  return AddParsed(app, name, "DURATION", description,
                   [name, value](const std::string& text) {
                     if (!absl::ParseDuration(text, value)) {
                       Refuse(name, text, "a duration such as 2s or 500ms");
                     }
                   })
      ->default_str(absl::FormatDuration(*value));
}

CLI::Option* AddSwitch(CLI::App& app, const std::string& name, bool* value,
                       const std::string& description) {
  return app.add_flag(name, *value, description);
}

CLI::Option* AddLabels(CLI::App& app, std::map<std::string, std::string>* labels,
                       const std::string& description) {
  const auto parse = [labels](const std::vector<std::string>& given) {
    for (const std::string& list : given) {
      for (const absl::string_view label : absl::StrSplit(list, ',', absl::SkipEmpty())) {
        const auto [key, value] = SplitPair(kLabel, label, "KEY=VALUE");
        (*labels)[key] = value;
      }
    }
  };
  return app.add_option_function<std::vector<std::string>>(kLabel, parse, description)
      ->type_name("KEY=VALUE,...")
      ->allow_extra_args(false);
}

CLI::Option* AddSize(CLI::App& app, const std::string& name, int64_t* bytes,
                     const std::string& description) {
  return AddParsed(app, name, "SIZE", description, [name, bytes](const std::string& text) {
    static constexpr std::pair<const char*, int64_t> kUnits[] = {{"KB", 1'000},
                                                                 {"MB", 1'000'000},
                                                                 {"GB", 1'000'000'000},
                                                                 {"KiB", int64_t{1} << 10},
                                                                 {"MiB", int64_t{1} << 20},
                                                                 {"GiB", int64_t{1} << 30},
                                                                 {"", 1}};
    for (const auto& [suffix, unit] : kUnits) {
      absl::string_view digits = text;
      int64_t number = 0;
      if (!absl::ConsumeSuffix(&digits, suffix)) continue;
      if (!absl::SimpleAtoi(digits, &number) || number <= 0 || number > INT64_MAX / unit) break;
      *bytes = number * unit;
      return;
    }
    Refuse(name, text, "a number of bytes such as 2GB, 500MB or 1GiB");
  });
}

CLI::Option* AddFormatOptions(CLI::App& app, nlohmann::json* options,
                              const std::string& description) {
  const auto parse = [options](const std::vector<std::string>& given) {
    for (const std::string& option : given) {
      const auto [name, value] = SplitPair(kOption, option, "NAME=VALUE");
      const auto json = nlohmann::json::parse(value, nullptr, /*allow_exceptions=*/false);
      (*options)[name] = json.is_discarded() ? nlohmann::json(value) : json;
    }
  };
  return app.add_option_function<std::vector<std::string>>(kOption, parse, description)
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false);
}

std::vector<std::string> ChoicesOf(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const size_t begin = type.find(kBeforeChoices);
  if (begin == std::string::npos) return {};
  const absl::string_view list = absl::string_view(type).substr(begin + 2);
  return absl::StrSplit(absl::StripSuffix(list, "}"), ',');
}

}  // namespace nni_compression::cli
