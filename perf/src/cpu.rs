//! CPU time of processes. The kernel's split of user and system time is sampled: it needs tens of seconds of a busy run.

use serde::{Deserialize, Serialize};

/// Microseconds of CPU time, as getrusage(2) and /proc/PID/stat tell it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CpuTime {
    pub user_us: u64,
    pub system_us: u64,
}

/// Whose time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// All threads of this process.
    Process,
    /// The calling thread.
    Thread,
}

impl CpuTime {
    /// Time used so far by this process or thread.
    pub fn own(whose: Whose) -> Self {
        let who = match whose {
            Whose::Process => libc::RUSAGE_SELF,
            Whose::Thread => libc::RUSAGE_THREAD,
        };
        // SAFETY: an all-zero rusage is valid, and the call only writes to it. It can't fail with these arguments.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(who, &raw mut usage);
            usage
        };
        let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
        Self { user_us: us(usage.ru_utime), system_us: us(usage.ru_stime) }
    }

    /// Time used so far by all threads of another process of this machine, to 10 ms; `None` if there is no such process.
    pub fn of_process(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // SAFETY: a plain query.
        let ticks =
            u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|ticks| *ticks > 0)?;
        parse_stat(&stat, 1_000_000 / ticks)
    }

    /// Time of all these processes; `None` if one isn't there, because a part would pass for the whole.
    pub fn of_processes(pids: &[u32]) -> Option<Self> {
        pids.iter().try_fold(Self::default(), |sum, pid| Some(sum.plus(Self::of_process(*pid)?)))
    }

    pub fn plus(self, other: Self) -> Self {
        Self { user_us: self.user_us + other.user_us, system_us: self.system_us + other.system_us }
    }

    /// Time used since `earlier`. A process that was restarted meanwhile counts from its start.
    pub fn since(self, earlier: Self) -> Self {
        let less = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        Self {
            user_us: less(self.user_us, earlier.user_us),
            system_us: less(self.system_us, earlier.system_us),
        }
    }
}

/// Fields 14 and 15 of proc_pid_stat(5). The name, field 2, may contain anything, so fields are counted after its end.
fn parse_stat(stat: &str, us_per_tick: u64) -> Option<CpuTime> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(CpuTime { user_us: next()? * us_per_tick, system_us: next()? * us_per_tick })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_time_grows_with_work() {
        let before = CpuTime::own(Whose::Thread);
        let mut sum = 0u64;
        while CpuTime::own(Whose::Thread) == before {
            (0..100_000u64).for_each(|number| sum = sum.wrapping_mul(31) ^ number);
        }
        assert_ne!(sum, 1);
        let process = CpuTime::own(Whose::Process);
        assert!(process.user_us + process.system_us > 0);
    }

    #[test]
    fn other_processes_are_read_whatever_their_name() {
        assert!(CpuTime::of_process(std::process::id()).is_some());
        assert_eq!(CpuTime::of_processes(&[std::process::id(), u32::MAX]), None);
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 25 75 0 0 20 0 1 0 5";
        assert_eq!(parse_stat(stat, 10_000), Some(CpuTime { user_us: 250_000, system_us: 750_000 }));
        assert_eq!(parse_stat("7 (cut) S 1", 10_000), None);
    }

    #[test]
    fn a_restarted_process_counts_from_its_start() {
        let time = |user_us| CpuTime { user_us, system_us: 0 };
        assert_eq!(time(50).since(time(20)), time(30));
        assert_eq!(time(5).since(time(20)), time(5));
    }
}
