//! A pipeline: items that go through the same stages, some of them at once.
//!
//! A thread takes an item from stage to stage until it must wait, so the item's rows stay in the cache of that core. If all threads share
//! each stage of one item instead, cache lines keep moving between cores: on cores without a common cache, two threads were then no
//! faster than one.

use std::iter::Enumerate;
use std::slice::IterMut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::Scope;

use crate::error::{Error, Result};

/// The work of a stage on one item.
pub type StageWork<'s, I> = Box<dyn Fn(&mut I) -> Result<()> + Sync + 's>;

/// A stage of the pipeline.
pub enum Stage<'s, I> {
    /// Takes items in any order, several at once.
    AnyOrder(StageWork<'s, I>),
    /// Takes one item at a time, in the order of the items.
    InOrder(StageWork<'s, I>),
}

/// An item, with its index.
type Indexed<'i, I> = (usize, &'i mut I);

/// Whose turn it is in a stage, in cache lines of its own.
#[repr(align(128))]
struct Turn<'i, I> {
    next: usize,
    /// Items that came before their turn.
    waiting: Vec<Indexed<'i, I>>,
}

struct Pipeline<'s, 'i, I> {
    stages: &'s [Stage<'s, I>],
    /// Items that have not begun.
    items: Mutex<Enumerate<IterMut<'i, I>>>,
    turns: Vec<Mutex<Turn<'i, I>>>,
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
}

/// Takes all items through the stages, at most `live` of them at once. No item blocks a thread: one that comes before its turn is put
/// aside, and the item before it resumes it.
///
/// # Errors
/// The first error of a stage, after which no item begins another stage.
pub fn run<I: Send>(items: &mut [I], live: usize, stages: &[Stage<'_, I>]) -> Result<()> {
    let turn = |_| Mutex::new(Turn { next: 0, waiting: Vec::new() });
    let pipeline = Pipeline {
        stages,
        items: Mutex::new(items.iter_mut().enumerate()),
        turns: stages.iter().map(turn).collect(),
        failed: AtomicBool::new(false),
        error: Mutex::new(None),
    };
    rayon::scope(|scope| {
        let pipeline = &pipeline;
        for _ in 1..live {
            scope.spawn(move |scope| pipeline.take_items(scope));
        }
        pipeline.take_items(scope);
    });
    let error = pipeline.error.into_inner().unwrap_or_else(PoisonError::into_inner);
    error.map_or(Ok(()), Err)
}

/// Locks a mutex. A panic ends the pipeline as a whole, so its poison says nothing more.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'s, 'i: 's, I: Send> Pipeline<'s, 'i, I> {
    /// Takes one item after another through all stages, until one is put aside or none is left.
    fn take_items<'p>(&'p self, scope: &Scope<'p>)
    where
        's: 'p,
    {
        loop {
            let Some(item) = lock(&self.items).next() else { return };
            if !self.resume(item, 0, scope) {
                return;
            }
        }
    }

    /// Takes an item through the stages from one on. Returns whether it came to the end.
    fn resume<'p>(&'p self, (index, item): Indexed<'i, I>, from: usize, scope: &Scope<'p>) -> bool
    where
        's: 'p,
    {
        for (i, stage) in self.stages.iter().enumerate().skip(from) {
            if self.failed.load(Ordering::Relaxed) {
                return false;
            }
            let work = match stage {
                Stage::AnyOrder(work) => work,
                Stage::InOrder(work) => {
                    let mut turn = lock(&self.turns[i]);
                    if turn.next != index {
                        turn.waiting.push((index, item));
                        return false;
                    }
                    work
                }
            };
            if let Err(error) = work(item) {
                lock(&self.error).get_or_insert(error);
                self.failed.store(true, Ordering::Relaxed);
                return false;
            }
            if let Stage::InOrder(_) = stage {
                let mut turn = lock(&self.turns[i]);
                turn.next += 1;
                let next = turn.waiting.iter().position(|(index, _)| *index == turn.next);
                if let Some(next) = next.map(|place| turn.waiting.swap_remove(place)) {
                    scope.spawn(move |scope| {
                        if self.resume(next, i, scope) {
                            self.take_items(scope);
                        }
                    });
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{Stage, run};
    use crate::error::Error;

    fn in_pool<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }

    /// Parts of the work that other threads may take, as the stages of a gradient have.
    fn inner_work() {
        rayon::join(rayon::yield_now, rayon::yield_now);
    }

    #[test]
    fn stages_in_order_take_each_item_in_turn() {
        for (threads, live) in [(1, 1), (1, 2), (2, 2), (3, 2), (4, 9)] {
            let in_flight = AtomicUsize::new(0);
            let most = AtomicUsize::new(0);
            let seen = [(); 2].map(|()| Mutex::new(Vec::new()));
            let mut items: Vec<_> = (0..40).map(|i| (i, 0)).collect();
            let stages = [
                Stage::AnyOrder(Box::new(|item: &mut (usize, usize)| {
                    most.fetch_max(in_flight.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    inner_work();
                    item.1 += 1;
                    Ok(())
                })),
                Stage::InOrder(Box::new(|item| {
                    let mut seen = seen[0].try_lock().expect("one item at a time");
                    inner_work();
                    seen.push(item.0);
                    item.1 *= 2;
                    Ok(())
                })),
                Stage::AnyOrder(Box::new(|item| {
                    inner_work();
                    item.1 += 3;
                    Ok(())
                })),
                Stage::InOrder(Box::new(|item| {
                    let mut seen = seen[1].try_lock().expect("one item at a time");
                    seen.push(item.0);
                    item.1 *= 10;
                    in_flight.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                })),
            ];
            in_pool(threads, || run(&mut items, live, &stages)).unwrap();
            drop(stages);
            let all: Vec<_> = (0..40).collect();
            assert!(seen.iter().all(|seen| *seen.lock().unwrap() == all), "{threads} threads, {live} live");
            assert!(items.iter().all(|item| item.1 == 50), "{threads} threads, {live} live: {items:?}");
            assert!(most.into_inner() <= live, "{threads} threads, {live} live");
        }
    }

    /// Two items meet in a stage of any order, each in a thread of its own. Either one alone would wait for ever.
    #[test]
    fn items_are_at_work_at_once() {
        let here = AtomicUsize::new(0);
        let stages = [Stage::AnyOrder(Box::new(|(): &mut ()| {
            here.fetch_add(1, Ordering::SeqCst);
            while here.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            Ok(())
        }))];
        in_pool(2, || run(&mut [(), ()], 2, &stages)).unwrap();
    }

    #[test]
    fn no_items() {
        let stages = [Stage::InOrder(Box::new(|(): &mut ()| unreachable!("no item")))];
        in_pool(2, || run(&mut [], 2, &stages)).unwrap();
    }

    /// An item waits for its turn while the one before it fails.
    #[test]
    fn an_error_leaves_waiting_items() {
        let second_waits = AtomicUsize::new(0);
        let stages = [
            Stage::AnyOrder(Box::new(|item: &mut usize| {
                second_waits.fetch_add(*item, Ordering::SeqCst);
                while *item == 0 && second_waits.load(Ordering::SeqCst) == 0 {
                    std::thread::yield_now();
                }
                if *item == 0 { Err(Error::Interrupted) } else { Ok(()) }
            })),
            Stage::InOrder(Box::new(|_| unreachable!("the first item never comes here"))),
        ];
        let result = in_pool(2, || run(&mut [0, 1, 2], 2, &stages));
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    }

    #[test]
    #[should_panic(expected = "in a stage")]
    fn a_panic_ends_the_pipeline() {
        let stages = [Stage::InOrder(Box::new(|item: &mut usize| {
            assert!(*item != 3, "in a stage");
            Ok(())
        }))];
        let _ = in_pool(2, || run(&mut [0, 1, 2, 3, 4], 2, &stages));
    }

    #[test]
    fn an_error_ends_the_pipeline() {
        for (threads, live) in [(1, 1), (2, 2)] {
            let after = AtomicUsize::new(0);
            let mut items: Vec<_> = (0..40).collect();
            let stages = [
                Stage::InOrder(Box::new(
                    |item: &mut usize| {
                        if *item == 7 { Err(Error::Interrupted) } else { Ok(()) }
                    },
                )),
                Stage::InOrder(Box::new(|_| {
                    after.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })),
            ];
            let result = in_pool(threads, || run(&mut items, live, &stages));
            assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
            drop(stages);
            assert!(after.into_inner() <= 7, "{threads} threads");
        }
    }
}
