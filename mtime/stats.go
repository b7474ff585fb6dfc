package mtime

import "nbc/index"

// Stats returns, by path, what each file and link was when its time was set, or found to be right. One that something
// else has changed since the walk (see [Plan.Changed]) is not among them. Whoever keeps the hash of a source keeps this
// Stat beside it: a Stat that is taken later may be that of other bytes.
func (p *Plan) Stats() map[string]index.Stat {
	stats := map[string]index.Stat{}
	for _, d := range p.folders {
		for _, s := range d.files {
			if s.changed {
				continue
			}
			stats[s.path] = s.seen
			for _, other := range s.others {
				stats[other] = s.seen
			}
		}
	}
	return stats
}
