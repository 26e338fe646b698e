//! What happens: requests, watch events, faults and time.

use super::{
    BTreeMap, BinaryHeap, Effect, Entry, Event, Fault, Happening, Holder, Identity, KEYSPACE,
    Lease, Load, Millis, OBJECTS, OTHER_KEYSPACE, Object, PartitionSet, Placement, Precondition,
    Protocol, Random, Record, Replica, Timing, TimingConfig, VecDeque, Version, Weather, World,
    Write, partitions,
};

impl World {
    pub(super) fn new(seed: u64, weather: Weather) -> Self {
        let mut random = Random(seed);
        let timing = if random.percent(50) { TimingConfig::DEFAULT } else { TimingConfig::FAST };
        let placement = if random.percent(50) {
            Placement::Rendezvous(Load::DEFAULT)
        } else {
            Placement::Sticky(Load::DEFAULT)
        };
        Self {
            random,
            weather,
            timing,
            placement,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            server: BTreeMap::new(),
            revision: 0,
            outage_until: 0,
            replicas: vec![],
            numbers: 0,
            objects: vec![],
            acting: vec![],
            unowned_since: None,
            rolls_keyspace: false,
            longest_gap: 0,
            mutant: None,
            two_owners: None,
            log: vec![],
        }
        .with_objects(OBJECTS)
    }

    /// So many objects, whose owners are not known yet.
    pub(super) fn with_objects(self, count: u32) -> Self {
        let object = Object { owner: None, unowned_since: Some(self.now), moves: 0 };
        let unowned_since = object.unowned_since;
        Self { objects: vec![object; count as usize], unowned_since, ..self }
    }

    pub(super) fn unowned(&self) -> usize {
        self.objects.iter().filter(|object| object.unowned_since.is_some()).count()
    }

    pub(super) fn join(&mut self, generation: u64, keyspace: u64) {
        let at = self.replicas.len();
        let identity = Identity {
            member: format!("op-{}-{at}", self.random.below(1_000)).into(),
            holder: Holder { pod: at as u128, incarnation: 0 },
            keyspace,
            placement: self.placement.fingerprint(),
            generation,
        };
        let error = i64::from(self.timing.clock_error_permille);
        let replica = Replica {
            identity,
            process: None,
            epoch: 0,
            waits_for: None,
            alarm: 0,
            inbox: VecDeque::new(),
            paused_until: 0,
            cut_off_until: 0,
            clock_start: 10_000_000 + self.random.below(1_000_000),
            clock_error: self.random.below(2 * error.unsigned_abs() + 1).cast_signed() - error,
            wall_offset: self.random.below(7_200_000).cast_signed() - 3_600_000,
        };
        self.replicas.push(replica);
        self.start(at);
    }

    fn start(&mut self, at: usize) {
        let timing = Timing::try_from(self.timing).expect("a profile is safe");
        let leases = self.server.values().cloned().collect();
        let replica = &mut self.replicas[at];
        replica.epoch += 1;
        replica.identity.holder.incarnation += 1;
        replica.inbox.clear();
        (replica.waits_for, replica.paused_until) = (None, 0);
        let now = replica.now(self.now);
        replica.process =
            Some(Protocol::new(replica.identity.clone(), timing, now).with(self.mutant));
        self.step(at, Event::Ready);
        self.step(at, Event::Listed(leases));
    }

    pub(super) fn push(&mut self, delay: Millis, replica: usize, what: Happening) {
        self.order += 1;
        let epoch = self.replicas.get(replica).map_or(0, |replica| replica.epoch);
        let at = self.now + delay;
        self.queue.push(Entry { at, order: self.order, replica, epoch, what });
    }

    pub(super) fn run_until(&mut self, end: Millis) {
        while let Some(entry) = self.queue.pop() {
            if entry.at > end {
                self.queue.push(entry);
                break;
            }
            self.now = entry.at;
            self.happen(entry);
            self.check();
        }
        self.now = end;
        self.check();
    }

    fn happen(&mut self, entry: Entry) {
        let at = entry.replica;
        let current = self.replicas[at].epoch == entry.epoch;
        match entry.what {
            Happening::Fault(fault) => return self.fault(at, fault),
            Happening::Arrive(number, write) => return self.arrive(at, number, write),
            Happening::Bury(lease) => return self.bury(at, lease),
            Happening::Delete(member, version) => {
                if self.server.get(&member).is_some_and(|lease| lease.version == version) {
                    self.server.remove(&member);
                }
                return;
            }
            _ if !current || self.replicas[at].process.is_none() => return,
            _ => {}
        }
        let replica = &self.replicas[at];
        let hears = !matches!(entry.what, Happening::Wake(_) | Happening::WorkEnds(_));
        let cut_off = if hears { self.outage_until.max(replica.cut_off_until) } else { 0 };
        let later = cut_off.max(replica.paused_until);
        if later > self.now {
            return self.push(later - self.now, at, entry.what);
        }
        match entry.what {
            Happening::Wake(alarm) if self.replicas[at].alarm == alarm => {
                self.step(at, Event::Tick);
            }
            Happening::Deliver => {
                if let Some(lease) = self.replicas[at].inbox.pop_front() {
                    self.step(at, Event::Seen(lease));
                }
            }
            Happening::Answer(number, event) if self.replicas[at].waits_for == Some(number) => {
                self.replicas[at].waits_for = None;
                // A refusal is followed by a read, which shows the Lease as it is then.
                let member = &self.replicas[at].identity.member;
                let event = match event {
                    Event::Refused(_) => Event::Refused(self.server.get(member).cloned()),
                    other => other,
                };
                self.step(at, event);
            }
            Happening::WorkEnds(partitions) => self.step(at, Event::Stopped(partitions)),
            _ => {}
        }
    }

    fn is_cut_off(&self, at: usize) -> bool {
        self.outage_until.max(self.replicas[at].cut_off_until) > self.now
    }

    fn commit(&mut self, mut lease: Lease) -> Version {
        self.revision += 1;
        lease.version = Version(self.revision);
        for at in 0..self.replicas.len() {
            if self.replicas[at].process.is_some() {
                self.replicas[at].inbox.push_back(lease.clone());
                let delay = 1 + self.random.below(self.weather.watch);
                self.push(delay, at, Happening::Deliver);
            }
        }
        self.server.insert(lease.member.clone(), lease);
        Version(self.revision)
    }

    fn arrive(&mut self, at: usize, number: u64, write: Write) {
        if self.is_cut_off(at) {
            return;
        }
        let member = self.replicas[at].identity.member.clone();
        let version = self.server.get(&member).map(|lease| lease.version);
        let allowed = match write.on {
            Precondition::Absent => version.is_none(),
            Precondition::Is(expected) => version == Some(expected),
            Precondition::Nothing => true,
        };
        let answer = if allowed {
            let lease = Lease { member, version: Version(0), record: write.record };
            Event::Written(self.commit(lease))
        } else {
            Event::Refused(None)
        };
        if !self.random.percent(self.weather.lost) {
            let delay = 1 + self.random.below(self.weather.trip);
            self.push(delay, at, Happening::Answer(number, answer));
        }
    }

    fn bury(&mut self, at: usize, lease: Lease) {
        let same = self.server.get(&lease.member).is_some_and(|l| l.version == lease.version);
        if same && !self.is_cut_off(at) {
            self.commit(lease);
        }
    }

    fn fault(&mut self, at: usize, fault: Fault) {
        self.log.push(format!("{} ms: {fault:?} of {at}", self.now));
        let until = |time: Millis| self.now + time;
        match fault {
            Fault::Crash => self.replicas[at].process = None,
            Fault::Restart => {
                let ended = self.replicas[at].process.is_none();
                if ended && !self.is_cut_off(at) {
                    self.start(at);
                }
            }
            Fault::Pause(time) => self.replicas[at].paused_until = until(time),
            Fault::CutOff(time) => self.replicas[at].cut_off_until = until(time),
            Fault::Outage(time) => self.outage_until = until(time),
            Fault::JumpWall(by) => self.replicas[at].wall_offset += by,
            Fault::Relist if !self.is_cut_off(at) && self.replicas[at].paused_until <= self.now => {
                self.replicas[at].inbox.clear();
                let leases = self.server.values().cloned().collect();
                self.step(at, Event::Listed(leases));
            }
            Fault::Relist => {}
            Fault::Leave => self.step(at, Event::Leave),
            Fault::Replace => {
                let Identity { generation, keyspace, .. } = self.replicas[at].identity;
                let other = KEYSPACE + OTHER_KEYSPACE - keyspace;
                let keyspace = if self.rolls_keyspace { other } else { keyspace };
                self.join(generation + 1, keyspace);
                self.push(3_000, at, Happening::Fault(Fault::Leave));
            }
        }
    }

    /// Gives an event to a process, does what it asks for, and places anew.
    fn step(&mut self, at: usize, event: Event) {
        let now = self.replicas[at].now(self.now);
        let Some(mut process) = self.replicas[at].process.take() else { return };
        let mut events = VecDeque::from([event]);
        let mut ended = false;
        while let Some(event) = events.pop_front() {
            let places = Self::places(&process, &event);
            for effect in process.step(now, event) {
                ended |= matches!(effect, Effect::Left | Effect::Superseded);
                self.effect(at, effect, &mut events);
            }
            if !places {
                continue;
            }
            let Identity { member, keyspace, .. } = &self.replicas[at].identity;
            let wants = self.placement.wants(partitions(*keyspace), &process, member);
            if wants != *process.wanted() && events.is_empty() && !ended {
                events.push_back(Event::Want(wants));
            }
            if process.stage() > crate::protocol::Stage::Active && events.len() == 1 {
                events.retain(|event| !matches!(event, Event::Want(_)));
            }
        }
        if let Some(due) = process.deadline() {
            let delay = self.replicas[at].real(due).saturating_sub(self.now);
            self.numbers += 1;
            self.replicas[at].alarm = self.numbers;
            self.push(delay.max(1), at, Happening::Wake(self.numbers));
        }
        self.replicas[at].process = (!ended).then_some(process);
    }

    /// Whether placement may say something else after this.
    fn places(process: &Protocol, event: &Event) -> bool {
        let essence = |lease: &Lease| {
            let Record { claims, stage, keyspace, generation, holder, .. } = &*lease.record;
            (claims.clone(), *stage, *keyspace, *generation, holder.is_some())
        };
        match event {
            Event::Seen(lease) => {
                let seen = process.leases().find(|seen| seen.member == lease.member);
                seen.is_none_or(|seen| essence(seen) != essence(lease))
            }
            Event::Listed(_) | Event::Gone(_) | Event::Ready => true,
            _ => false,
        }
    }

    fn effect(&mut self, at: usize, effect: Effect, events: &mut VecDeque<Event>) {
        let travel = 1 + self.random.below(self.weather.trip);
        match effect {
            Effect::Write(write) => {
                self.numbers += 1;
                let number = self.numbers;
                self.replicas[at].waits_for = Some(number);
                let late = self.random.percent(self.weather.late);
                let delay = if late { self.random.below(30_000) } else { travel };
                self.push(delay, at, Happening::Arrive(number, write));
                let timeout = self.timing.renew_timeout;
                self.push(timeout, at, Happening::Answer(number, Event::Failed));
            }
            Effect::Tombstone(lease) => self.push(travel, at, Happening::Bury(lease)),
            Effect::Forget(member, version) => {
                self.push(travel, at, Happening::Delete(member, version));
            }
            Effect::Stop(partitions) | Effect::Revoked(partitions) => {
                let (mut idle, work) = (PartitionSet::EMPTY, self.weather.work);
                for partition in partitions.iter() {
                    if work == 0 || self.random.percent(50) {
                        idle.insert(partition);
                    } else {
                        let delay = 1 + self.random.below(work);
                        let one = PartitionSet::from_iter([partition]);
                        self.push(delay, at, Happening::WorkEnds(one));
                    }
                }
                events.push_front(Event::Stopped(idle));
            }
            _ => {}
        }
    }

    /// Who may act on what. While that stays the same, only the gaps grow.
    fn check(&mut self) {
        let acts = |(at, replica): (usize, &Replica)| {
            let owned = replica.valid(self.now)?.owned();
            Some((at, partitions(replica.identity.keyspace), owned))
        };
        let acting: Vec<_> = self.replicas.iter().enumerate().filter_map(acts).collect();
        if acting != self.acting {
            self.acting = acting;
            self.look_at_objects();
        }
        if let Some(start) = self.unowned_since {
            self.longest_gap = self.longest_gap.max(self.now - start);
        }
    }

    fn look_at_objects(&mut self) {
        for (number, object) in (0_u32..).zip(&mut self.objects) {
            let acts = |(at, partitions, owned): &(usize, u32, PartitionSet)| {
                owned.contains(number % partitions).then_some(*at)
            };
            let mut owners = self.acting.iter().filter_map(acts);
            let owner = owners.next();
            if owners.next().is_some() {
                let when = format!("two owners of object {number} at {} ms", self.now);
                self.two_owners.get_or_insert(when);
            }
            if let Some(start) = object.unowned_since {
                self.longest_gap = self.longest_gap.max(self.now - start);
            }
            if owner.is_some() {
                object.moves += u32::from(object.owner.is_some() && object.owner != owner);
                (object.owner, object.unowned_since) = (owner, None);
            } else {
                object.unowned_since.get_or_insert(self.now);
            }
        }
        self.unowned_since = self.objects.iter().filter_map(|o| o.unowned_since).min();
    }
}
