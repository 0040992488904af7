// Random reads of one file through XRootD's own asynchronous client (XrdCl): what `fio` and `corefs perf` do for the others.
//   xrootd_reads HOST:PORT FILE SIZE BLOCK DEPTH CONNECTIONS SEED WARMUP SECONDS
// DEPTH reads are in flight all the time, spread over the connections. Prints one line of JSON.
// A server of XRootD takes the reads of a connection one after another, so it needs several to read in parallel; the client opens another
// connection for another user name.
#include <XrdCl/XrdClFile.hh>
#include <XrdCl/XrdClXRootDResponses.hh>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

using Clock = std::chrono::steady_clock;

static std::atomic<bool> measuring{false}, stopping{false};
static std::atomic<int> in_flight{0};

// One of the DEPTH: the next read is sent when the last one has come. Only one read of it is ever under way, so nothing here is shared.
class Lane : public XrdCl::ResponseHandler {
 public:
  std::vector<uint32_t> nanoseconds;
  uint64_t errors = 0;

  Lane(XrdCl::File &file, uint64_t blocks, uint32_t block, unsigned seed)
      : file(file), block(block), buffer(block), random(seed), which(0, blocks - 1) {}

  void send() {
    started = Clock::now();
    if (!file.Read(which(random) * block, block, buffer.data(), this).IsOK()) {
      ++errors;
      --in_flight;
    }
  }

  void HandleResponse(XrdCl::XRootDStatus *status, XrdCl::AnyObject *response) override {
    XrdCl::ChunkInfo *chunk = nullptr;
    if (response) response->Get(chunk);
    if (!status->IsOK() || !chunk || chunk->length != block) {
      ++errors;
    } else if (measuring) {
      // Also one that was sent before the measured time, as its end lies in it.
      nanoseconds.push_back(std::chrono::nanoseconds(Clock::now() - started).count());
    }
    delete status;
    delete response;
    if (stopping || errors) {
      --in_flight;
    } else {
      send();
    }
  }

 private:
  XrdCl::File &file;
  uint32_t block;
  std::vector<char> buffer;
  std::mt19937_64 random;
  std::uniform_int_distribution<uint64_t> which;
  Clock::time_point started;
};

int main(int count, char **args) {
  if (count != 10) return 2;
  const std::string server = args[1], path = args[2];
  const uint64_t size = strtoull(args[3], nullptr, 10);
  const uint32_t block = atoi(args[4]);
  const int depth = atoi(args[5]), connections = atoi(args[6]), seed = atoi(args[7]);
  const auto seconds = [](const char *text) { return std::chrono::duration<double>(atof(text)); };

  std::vector<std::unique_ptr<XrdCl::File>> files;
  for (int i = 0; i < connections; ++i) {
    files.push_back(std::make_unique<XrdCl::File>());
    const std::string url = "root://u" + std::to_string(i) + "@" + server + "/" + path;
    const auto status = files.back()->Open(url, XrdCl::OpenFlags::Read);
    if (!status.IsOK()) {
      fprintf(stderr, "%s: %s\n", url.c_str(), status.ToString().c_str());
      return 1;
    }
  }
  std::vector<std::unique_ptr<Lane>> lanes;
  for (int i = 0; i < depth; ++i) lanes.push_back(std::make_unique<Lane>(*files[i % connections], size / block, block, seed * 1000 + i));
  in_flight = depth;
  for (auto &lane : lanes) lane->send();
  std::this_thread::sleep_for(seconds(args[8]));
  const double began = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  const auto from = Clock::now();
  measuring = true;
  std::this_thread::sleep_for(seconds(args[9]));
  measuring = false;
  const double took = std::chrono::duration<double>(Clock::now() - from).count();
  stopping = true;
  for (int i = 0; in_flight > 0; ++i) {
    if (i == 30000) {
      fprintf(stderr, "%d reads didn't come back within 30 s\n", int(in_flight));
      _Exit(1);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::vector<uint32_t> all;
  uint64_t errors = 0;
  for (auto &lane : lanes) {
    all.insert(all.end(), lane->nanoseconds.begin(), lane->nanoseconds.end());
    errors += lane->errors;
  }
  std::sort(all.begin(), all.end());
  const auto at = [&](double share) { return all.empty() ? 0.0 : all[std::min(all.size() - 1, size_t(share * all.size()))] / 1000.0; };
  printf("{\"began\": %.3f, \"seconds\": %.6f, \"operations\": %zu, \"errors\": %llu, \"p50\": %.1f, \"p99\": %.1f}\n", began, took, all.size(),
         static_cast<unsigned long long>(errors), at(0.50), at(0.99));
  // What the client still does at its end isn't measured; a connection that hangs must not keep this process.
  fflush(stdout);
  _Exit(0);
}
